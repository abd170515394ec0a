"""What the proxy does not wait for, and does not take."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.proxy import ProxyLimits
from tests.ports import free_port
from tests.proxies import ANSWER, CHAT, CHUNK, PATH, Provider, event, running_proxy, stalled_stream
from tests.unit.instrumentation.matrix import only_record, records_of
from tests.waiting import MAX_WAIT


@contextmanager
def limited(provider: Provider, client: CostOpsClient, **limits: Any) -> Iterator[str]:
    with running_proxy({"openai": provider.url}, client, limits=ProxyLimits(**limits)) as url:
        yield url


def code_of(given: httpx.Response) -> tuple[int, str]:
    return given.status_code, given.json()["error"]["code"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_has_a_limit(provider: Provider, client: CostOpsClient, chunked: bool) -> None:
    body = json.dumps({**CHAT, "user": "x" * 5000}).encode()
    content = (body[start : start + 1000] for start in range(0, len(body), 1000)) if chunked else body
    with limited(provider, client, max_body_bytes=4000) as url:
        given = httpx.post(url + PATH, content=content, headers={"content-type": "application/json"})
    assert code_of(given) == (413, "body_too_large")
    assert provider.seen == []
    assert records_of(client) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_has_a_limit(provider: Provider, client: CostOpsClient, chunked: bool) -> None:
    body = b"x" * 300_000
    content = (body[start : start + 9000] for start in range(0, len(body), 9000)) if chunked else body
    with limited(provider, client, max_upload_bytes=200_000) as url:
        given = httpx.put(url + "/openai/v1/files", content=content)
        assert code_of(given) == (413, "body_too_large")
        assert httpx.put(url + "/openai/v1/files", content=b"x" * 200_000).status_code == 200


@pytest.mark.parametrize("path", [PATH, "/openai/v1/files"])
def test_a_body_that_does_not_come_is_not_waited_for(
    provider: Provider, client: CostOpsClient, path: str
) -> None:
    with limited(provider, client, body_timeout=0.3) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname or "", place.port or 0)) as caller:
            caller.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n123".encode())
            caller.settimeout(MAX_WAIT)
            assert caller.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_an_answer_that_does_not_begin_is_not_waited_for(provider: Provider, client: CostOpsClient) -> None:
    provider.answer = lambda handler: handler.wait_until_closed()
    with limited(provider, client, answer_timeout=1.5) as url:
        assert code_of(httpx.post(url + PATH, json=CHAT)) == (504, "upstream_timeout")
        assert provider.closed.wait(MAX_WAIT)
    assert only_record(client, "unknown").model_id == "gpt-4o"


def test_an_answer_that_stops_is_not_waited_for(provider: Provider, client: CostOpsClient) -> None:
    provider.answer = stalled_stream
    with limited(provider, client, idle_timeout=0.3) as url:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(url + PATH, json={**CHAT, "stream": True})
        assert provider.closed.wait(MAX_WAIT)
    only_record(client, "unknown")


def test_an_answer_that_goes_on_for_longer_than_it_may_rest_passes(
    provider: Provider, client: CostOpsClient
) -> None:
    def answer(handler: Any) -> None:
        handler.stream()
        for _ in range(10):
            time.sleep(0.25)
            handler.part(event(CHUNK))
        handler.part(event({**CHUNK, "choices": [], "usage": ANSWER["usage"]}) + event(b"[DONE]"))
        handler.part(b"")

    provider.answer = answer
    with limited(provider, client, idle_timeout=2.0, answer_timeout=2.0) as url:
        assert httpx.post(url + PATH, json={**CHAT, "stream": True}).content.count(b"data:") == 11
    only_record(client, "measured")


def test_a_call_as_a_whole_has_a_limit(provider: Provider, client: CostOpsClient) -> None:
    def answer(handler: Any) -> None:
        handler.stream()
        while not provider.closed.is_set():
            time.sleep(0.02)
            try:
                handler.part(event(CHUNK))
            except OSError:
                provider.closed.set()

    provider.answer = answer
    # Within this the answer has to begin, on any machine.
    with limited(provider, client, call_timeout=2.0) as url:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(url + PATH, json={**CHAT, "stream": True})
        assert provider.closed.wait(MAX_WAIT)
    only_record(client, "unknown")


def test_a_call_too_many_is_refused_and_health_answers(provider: Provider, client: CostOpsClient) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def answer(handler: Any) -> None:
        arrived.set()
        go_on.wait(MAX_WAIT)
        handler.whole(json.dumps(ANSWER).encode())

    provider.answer = answer
    with limited(provider, client, max_calls=1) as url:
        statuses: list[int] = []
        first = threading.Thread(
            target=lambda: statuses.append(httpx.post(url + PATH, json=CHAT).status_code)
        )
        first.start()
        assert arrived.wait(MAX_WAIT)
        refused = httpx.post(url + PATH, json=CHAT)
        assert code_of(refused) == (503, "too_many_calls")
        assert refused.headers["retry-after"] == "1"
        assert httpx.get(url + "/health").json() == {"status": "ok"}
        assert httpx.get(url + "/ready").json() == {"status": "ok"}
        go_on.set()
        first.join(MAX_WAIT)
        assert statuses == [200]
        assert httpx.post(url + PATH, json=CHAT).status_code == 200


def test_a_provider_that_is_away_is_a_bad_gateway(client: CostOpsClient) -> None:
    port = free_port()
    with running_proxy({"openai": f"http://127.0.0.1:{port}"}, client) as url:
        given = httpx.post(url + PATH, json=CHAT)
        assert code_of(given) == (502, "upstream_unreachable")
        assert given.json()["error"]["message"] == "openai: no answer: ConnectError"
    assert records_of(client) == []


@pytest.mark.parametrize("path", ["/", "/v1/chat/completions", "/health/x", "/OPENAI/v1", "//openai/v1"])
def test_only_upstreams_of_the_configuration_are_reached(proxy: str, provider: Provider, path: str) -> None:
    assert code_of(httpx.post(proxy + path, json=CHAT)) == (404, "no_such_upstream")
    assert provider.seen == []


@pytest.mark.parametrize(
    "target",
    [
        "/openai/../anthropic",
        "/openai/v1/%2e%2E/x",
        "/openai/..",
        "/openai/./v1",
        "/openai/.%2e/x",
        "/openai/..%2f..%2Fx",
        "/openai/v1%2f..",
        "/openai/..%5cx",
    ],
)
def test_a_path_does_not_lead_out_of_its_upstream(proxy: str, provider: Provider, target: str) -> None:
    place = urlsplit(proxy)
    with socket.create_connection((place.hostname or "", place.port or 0)) as caller:
        caller.sendall(f"GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert caller.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert provider.seen == []


def test_a_websocket_is_refused(proxy: str, provider: Provider) -> None:
    headers = {"connection": "Upgrade", "upgrade": "WebSocket", "sec-websocket-version": "13"}
    given = httpx.get(proxy + "/openai/v1/realtime?model=gpt-realtime", headers=headers)
    assert code_of(given) == (501, "no_websockets")
    assert provider.seen == []


@pytest.mark.parametrize("target", ["http://evil.example/openai/v1/models", "*", "evil.example/openai"])
def test_a_target_of_another_form_is_refused(proxy: str, provider: Provider, target: str) -> None:
    place = urlsplit(proxy)
    with socket.create_connection((place.hostname or "", place.port or 0)) as caller:
        caller.sendall(f"OPTIONS {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert caller.recv(4096).split()[1] == b"404"
    assert provider.seen == []
