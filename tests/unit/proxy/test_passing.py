"""What reaches the provider, and what the caller gets back."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import socket
import threading
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.types import UsageQuality
from tests.proxies import ANSWER, CHUNK, Provider, broken_stream, event, running_proxy, stalled_stream
from tests.unit.instrumentation.matrix import only_record, records_of
from tests.waiting import MAX_WAIT

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
COMPLETIONS = "/openai/v1/chat/completions"


def connect(proxy: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(proxy).netloc, timeout=60)


def test_a_request_reaches_the_provider_as_it_was_sent(proxy: str, provider: Provider) -> None:
    body = json.dumps(CHAT).encode()
    connection = connect(proxy)
    path = "/openai/v1/chat/completions/%2Fodd%20path;a=b//?q=%20x&q=2&empty="
    connection.putrequest("POST", path, skip_host=True, skip_accept_encoding=True)
    for name, value in (
        ("Host", "proxy.example"), ("Authorization", "Bearer sk-1"), ("X-Api-Key", "k2"),
        ("api-key", "k3"), ("Content-Type", "application/json"), ("Content-Length", str(len(body))),
        ("X-Twice", "1"), ("X-Twice", "2"), ("Connection", "keep-alive, X-Only-Here"), ("X-Only-Here", "1"),
        ("TE", "trailers"), ("Keep-Alive", "timeout=5"), ("Proxy-Authorization", "Basic x"),
        ("X-Lco-User", "u-1"), ("Upgrade", "h2c"),
    ):  # fmt: skip
        connection.putheader(name, value)
    connection.endheaders(body)
    assert connection.getresponse().read() == json.dumps(ANSWER).encode()
    connection.close()
    (seen,) = provider.seen
    assert (seen.method, seen.path, seen.body) == ("POST", path.removeprefix("/openai"), body)
    assert sorted(seen.headers) == sorted([
        ("host", urlsplit(provider.url).netloc), ("authorization", "Bearer sk-1"), ("x-api-key", "k2"),
        ("api-key", "k3"), ("content-type", "application/json"), ("content-length", str(len(body))),
        ("x-twice", "1"), ("x-twice", "2"),
    ])  # fmt: skip


def test_a_connection_that_names_the_length_of_a_body_does_not_take_it_away(
    proxy: str, provider: Provider
) -> None:
    headers = {"connection": "close, content-length", "content-type": "application/json"}
    given = httpx.post(proxy + COMPLETIONS, json=CHAT, headers=headers)
    assert (given.status_code, json.loads(provider.seen[0].body)) == (200, CHAT)


def test_what_is_nested_too_deep_to_be_read_passes_and_is_of_unknown_usage(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    deep = b'{"model":"gpt-4o","stream":true,"x":' + b"[" * 40_000 + b"]" * 40_000 + b"}"

    def answer(handler: Any) -> None:
        handler.whole(deep, 200, ("content-type", "application/json"))

    provider.answer = answer
    given = httpx.post(proxy + COMPLETIONS, content=deep, headers={"content-type": "application/json"})
    assert (given.status_code, given.content, provider.seen[0].body) == (200, deep, deep)
    [record] = records_of(client)
    assert (record.provider, record.quality) == ("openai", UsageQuality.UNKNOWN)


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "PATCH", "PUT", "POST"])
def test_any_method_and_path_passes_and_is_not_recorded(
    proxy: str, provider: Provider, client: CostOpsClient, method: str
) -> None:
    def answer(handler: Any) -> None:
        handler.whole(b"what there is", 200, ("content-type", "text/plain"), ("x-one", "1"))

    provider.answer = answer
    given = httpx.request(method, proxy + "/anthropic/v1/models?limit=2")
    assert given.status_code == 200
    assert given.content == (b"" if method == "HEAD" else b"what there is")
    assert given.headers["content-length"] == "13"
    assert given.headers["x-one"] == "1"
    assert [(seen.method, seen.path) for seen in provider.seen] == [(method, "/base/v1/models?limit=2")]
    assert records_of(client) == []


@pytest.mark.parametrize("status", [301, 304, 400, 401, 404, 429, 500, 503, 529])
def test_a_status_that_is_no_success_passes_and_is_not_recorded(
    proxy: str, provider: Provider, client: CostOpsClient, status: int
) -> None:
    body = b"" if status == 304 else b'{"error": {"message": "no"}}'

    def answer(handler: Any) -> None:
        headers = (("retry-after", "7"), ("location", "https://elsewhere.example/"))
        if body:
            handler.whole(body, status, *headers)
        else:
            handler.head(status, *headers)

    provider.answer = answer
    given = httpx.post(proxy + COMPLETIONS, json=CHAT)
    assert (given.status_code, given.content) == (status, body)
    assert (given.headers["retry-after"], given.headers["location"]) == ("7", "https://elsewhere.example/")
    assert records_of(client) == []


def test_a_model_of_bedrock_is_told_from_an_encoded_path(provider: Provider, client: CostOpsClient) -> None:
    usage = {"input_tokens": 1000, "output_tokens": 7}
    message = {"type": "message", "model": "claude-sonnet-4-5", "content": [], "usage": usage}
    provider.answer = lambda handler: handler.whole(
        json.dumps({**message, "id": f"msg_{len(provider.seen)}"}).encode()
    )
    profile = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abcdefgh"
    named = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
    with running_proxy({"aws": provider.url}, client) as url:
        for model in (profile, named):
            path = f"/aws/model/{quote(model, safe='')}/invoke"
            assert httpx.post(url + path, json={"messages": []}).status_code == 200
            assert provider.seen[-1].path == path.removeprefix("/aws")
    records = {record.model_id: (record.total_tokens, record.region) for record in records_of(client)}
    assert records == {profile: (1007, ""), named: (1007, "eu")}


def test_headers_of_an_answer_pass_but_those_of_its_connection(proxy: str, provider: Provider) -> None:
    def answer(handler: Any) -> None:
        handler.whole(
            b"{}", 200, ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Connection", "close, X-Hop"),
            ("X-Hop", "1"), ("Keep-Alive", "timeout=5"), ("X-Lco-Provider", "forged"),
            ("X-Request-Id", "req_1"),
        )  # fmt: skip
        handler.close_connection = True

    provider.answer = answer
    given = httpx.get(proxy + "/openai/v1/models")
    assert given.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert given.headers["x-request-id"] == "req_1"
    assert not {"x-hop", "keep-alive", "x-lco-provider"} & set(given.headers)
    assert len(given.headers.get_list("date")) == 1
    assert httpx.get(proxy + "/openai/v1/models").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_is_passed_on_as_it_comes(
    proxy: str, provider: Provider, client: CostOpsClient, chunked: bool
) -> None:
    content = bytes(range(256)) * 20_000
    parts = (content[start : start + 70_001] for start in range(0, len(content), 70_001))
    headers = {"content-type": "application/octet-stream"}
    given = httpx.put(proxy + "/openai/v1/files", content=parts if chunked else content, headers=headers)
    assert given.status_code == 200
    (seen,) = provider.seen
    assert (seen.size, seen.digest) == (len(content), hashlib.sha256(content).hexdigest())
    assert seen.header("transfer-encoding") == ("chunked" if chunked else None)
    assert seen.header("content-length") == (None if chunked else str(len(content)))


def test_an_upload_begins_before_it_ends(
    proxy: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider refuses by its headers what the caller is still sending."""
    reached = threading.Event()
    rest = threading.Event()

    def parts() -> Any:
        yield b"x" * 100_000
        assert rest.wait(MAX_WAIT)
        yield b"y"

    handlers: Any = provider.RequestHandlerClass
    original = handlers._body

    def reading(handler: Any) -> bytes:
        reached.set()
        return original(handler)

    monkeypatch.setattr(handlers, "_body", reading)
    sender = threading.Thread(target=lambda: httpx.put(proxy + "/openai/v1/files", content=parts()))
    sender.start()
    assert reached.wait(MAX_WAIT)
    rest.set()
    sender.join(MAX_WAIT)
    assert provider.seen[0].size == 100_001


def test_a_form_is_recorded_by_the_model_that_it_names(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    usage = {"type": "tokens", "input_tokens": 1000, "output_tokens": 7, "total_tokens": 1007}
    provider.answer = lambda handler: handler.whole(json.dumps({"text": "hi", "usage": usage}).encode())
    files = {"file": ("a.mp3", b"\0" * 200_000)}
    given = httpx.post(
        proxy + "/openai/v1/audio/transcriptions", data={"model": "gpt-4o-transcribe"}, files=files
    )
    assert given.status_code == 200
    assert provider.seen[0].size > 200_000
    assert only_record(client, "measured").model_id == "gpt-4o-transcribe"


def test_each_event_passes_before_the_next_one_is_sent(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    """The provider sends an event only when the caller has the one before it."""
    turn = threading.Semaphore(1)

    def answer(handler: Any) -> None:
        handler.stream()
        for payload in (CHUNK, CHUNK, {**CHUNK, "choices": [], "usage": ANSWER["usage"]}, b"[DONE]"):
            assert turn.acquire(timeout=60)
            handler.part(event(payload))
        handler.part(b"")

    provider.answer = answer
    asked = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    received = b""
    with httpx.stream("POST", proxy + COMPLETIONS, json=asked) as given:
        assert given.headers["content-type"] == "text/event-stream"
        for data in given.iter_raw():
            received += data
            turn.release()
    assert received.count(b"data: ") == 4
    assert json.loads(provider.seen[0].body) == asked
    only_record(client, "measured")


def test_a_stream_is_asked_for_its_usage_and_the_caller_does_not_see_it(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    def answer(handler: Any) -> None:
        handler.stream()
        handler.part(event(CHUNK) + event({**CHUNK, "choices": [], "usage": ANSWER["usage"]}))
        handler.part(event(b"[DONE]"))
        handler.part(b"")

    provider.answer = answer
    given = httpx.post(proxy + COMPLETIONS, json={**CHAT, "stream": True})
    assert given.content == event(CHUNK) + event(b"[DONE]")
    body = json.loads(provider.seen[0].body)
    assert body == {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    assert provider.seen[0].header("content-length") == str(len(provider.seen[0].body))
    assert provider.seen[0].header("accept-encoding") == "identity"
    only_record(client, "measured")


def test_a_host_that_refuses_the_question_gets_the_request_as_it_was(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    def answer(handler: Any) -> None:
        if b"stream_options" in provider.seen[-1].body:
            handler.whole(b'{"error": {"message": "unknown field stream_options"}}', 400)
            return
        handler.stream()
        handler.part(event(CHUNK) + event(b"[DONE]"))
        handler.part(b"")

    provider.answer = answer
    body = json.dumps({**CHAT, "stream": True})
    for _ in range(2):
        given = httpx.post(proxy + COMPLETIONS, content=body, headers={"content-type": "application/json"})
        assert given.content == event(CHUNK) + event(b"[DONE]")
    assert len(provider.seen) == 3
    assert [seen.body == body.encode() for seen in provider.seen] == [False, True, True]


@pytest.mark.parametrize("size", [10, 300_000])
def test_an_error_that_has_another_reason_passes_whole(
    proxy: str, provider: Provider, client: CostOpsClient, size: int
) -> None:
    provider.answer = lambda handler: handler.whole(b"x" * size, 400)
    given = httpx.post(proxy + COMPLETIONS, json={**CHAT, "stream": True})
    assert (given.status_code, given.content) == (400, b"x" * size)
    assert len(provider.seen) == 1
    assert records_of(client) == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_answer_passes_as_it_is_and_is_read(
    proxy: str, provider: Provider, client: CostOpsClient, encoding: str
) -> None:
    import zlib

    plain = json.dumps(ANSWER).encode()
    packed = gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)
    provider.answer = lambda handler: handler.whole(packed, 200, ("content-encoding", encoding))
    accepted = {"accept-encoding": "br;q=1.0, zstd, gzip;q=0.9, deflate"}
    with httpx.stream("POST", proxy + COMPLETIONS, json=CHAT, headers=accepted) as given:
        assert b"".join(given.iter_raw()) == packed
    assert given.headers["content-encoding"] == encoding
    assert provider.seen[0].header("accept-encoding") == "gzip;q=0.9, deflate"
    only_record(client, "measured")


def test_a_compressed_answer_that_we_did_not_allow_is_of_unknown_usage(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    provider.answer = lambda handler: handler.whole(b"\x0b\x02", 200, ("content-encoding", "br"))
    with httpx.stream("POST", proxy + COMPLETIONS, json=CHAT) as given:
        assert b"".join(given.iter_raw()) == b"\x0b\x02"
    assert only_record(client, "unknown").model_id == "gpt-4o"


def test_what_is_not_recorded_may_have_any_encoding(proxy: str, provider: Provider) -> None:
    httpx.get(proxy + "/openai/v1/models", headers={"accept-encoding": "br"})
    assert provider.seen[0].header("accept-encoding") == "br"


def test_a_caller_that_leaves_a_stream_ends_it_and_its_usage_is_unknown(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    provider.answer = stalled_stream
    with httpx.stream("POST", proxy + COMPLETIONS, json={**CHAT, "stream": True}) as given:
        next(given.iter_raw())
    assert provider.closed.wait(MAX_WAIT)
    assert only_record(client, "unknown").model_id == "gpt-4o"


def test_a_caller_that_leaves_before_the_answer_is_recorded_of_unknown_usage(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    asked = threading.Event()

    def answer(handler: Any) -> None:
        asked.set()
        handler.wait_until_closed()

    provider.answer = answer
    connection = connect(proxy)
    connection.request("POST", COMPLETIONS, json.dumps(CHAT), {"Content-Type": "application/json"})
    assert asked.wait(MAX_WAIT)
    connection.close()
    assert provider.closed.wait(MAX_WAIT)
    assert only_record(client, "unknown").model_id == "gpt-4o"


def test_a_caller_that_leaves_after_the_counts_is_recorded_with_them(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    def answer(handler: Any) -> None:
        handler.stream()
        usage = {**CHUNK, "choices": [], "usage": ANSWER["usage"]}
        handler.part(event(CHUNK) + event(usage) + event(b"[DONE]"))
        handler.wait_until_closed()

    provider.answer = answer
    with httpx.stream("POST", proxy + COMPLETIONS, json={**CHAT, "stream": True}) as given:
        next(given.iter_raw())
    assert provider.closed.wait(MAX_WAIT)
    only_record(client, "measured")


def test_a_caller_that_leaves_in_its_body_reaches_nobody(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    place = urlsplit(proxy)
    with socket.create_connection((place.hostname or "", place.port or 0)) as caller:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
        caller.sendall(head.encode() + b'{"model": ')
    assert httpx.get(proxy + "/health").status_code == 200
    assert provider.seen == []
    assert records_of(client) == []


def test_an_answer_that_breaks_off_breaks_off_for_the_caller(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    provider.answer = broken_stream
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(proxy + COMPLETIONS, json={**CHAT, "stream": True})
    assert only_record(client, "unknown").model_id == "gpt-4o"


def test_connections_are_used_again(proxy: str, provider: Provider) -> None:
    ports = []

    def answer(handler: Any) -> None:
        ports.append(handler.client_address[1])
        handler.whole(json.dumps(ANSWER).encode())

    provider.answer = answer
    with httpx.Client() as caller:
        for _ in range(5):
            assert caller.post(proxy + COMPLETIONS, json=CHAT).status_code == 200
    assert len(set(ports)) == 1


def test_twenty_at_once_are_recorded_once_each(proxy: str, provider: Provider, client: CostOpsClient) -> None:
    numbers = iter(range(1000))

    def answer(handler: Any) -> None:
        handler.whole(json.dumps({**ANSWER, "id": f"chatcmpl-{next(numbers)}"}).encode())

    provider.answer = answer
    statuses: list[int] = []
    callers = [
        threading.Thread(
            target=lambda: statuses.append(httpx.post(proxy + COMPLETIONS, json=CHAT).status_code)
        )
        for _ in range(20)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert statuses == [200] * 20
    records = records_of(client)
    assert len(records) == 20
    assert {record.total_tokens for record in records} == {1007}


def test_an_answer_that_is_no_json_is_recorded_of_unknown_usage(
    proxy: str, provider: Provider, client: CostOpsClient
) -> None:
    provider.answer = lambda handler: handler.whole(b"<html>", 200, ("content-type", "text/html"))
    assert httpx.post(proxy + COMPLETIONS, json=CHAT).content == b"<html>"
    assert only_record(client, "unknown").quality == UsageQuality.UNKNOWN


def test_the_trace_of_a_call_is_noted(proxy: str, provider: Provider, client: CostOpsClient) -> None:
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    httpx.post(proxy + COMPLETIONS, json=CHAT, headers={"traceparent": f"00-{trace}-{span}-01"})
    record = only_record(client, "measured")
    assert (record.trace_id, record.span_id, record.source) == (trace, span, "proxy")
    assert provider.seen[0].header("traceparent") == f"00-{trace}-{span}-01"


def test_upstreams_of_servers_that_people_run_themselves(client: CostOpsClient, provider: Provider) -> None:
    """Their ids are not unique, and they are not asked for usage unless it is said that they take it."""
    with running_proxy({"vllm": provider.url}, client) as url:
        for _ in range(2):
            httpx.post(url + "/vllm/v1/chat/completions", json=CHAT)
        httpx.post(url + "/vllm/v1/chat/completions", json={**CHAT, "stream": True})
    assert b"stream_options" not in provider.seen[-1].body
    with running_proxy({"vllm": provider.url}, client, stream_usage=True) as url:
        httpx.post(url + "/vllm/v1/chat/completions", json={**CHAT, "stream": True})
    assert b"stream_options" in provider.seen[-1].body
    records = records_of(client)
    assert len(records) == 4
    assert {record.provider for record in records} == {"vllm"}


@pytest.mark.parametrize(
    ("path", "last"),
    [
        (COMPLETIONS, b"data: [DONE]\n\n"),
        ("/anthropic/v1/messages", b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        ("/openai/v1/responses", b'data: {"type": "response.completed", "response": {"id": "resp_1"}}\n\n'),
    ],
)
@pytest.mark.parametrize("cut", [0, 9])
def test_a_stream_is_recorded_before_its_last_event_passes(
    proxy: str, provider: Provider, client: CostOpsClient, path: str, last: bytes, cut: int
) -> None:
    """SDKs stop reading at that event, and the end of the body may never be sent."""
    end = threading.Event()

    def answer(handler: Any) -> None:
        handler.stream()
        for part in (event(CHUNK), last[:cut], last[cut:]):
            if part:
                handler.part(part)
        end.wait(MAX_WAIT)
        handler.part(b"")

    provider.answer = answer
    received = b""
    with httpx.stream("POST", proxy + path, json={**CHAT, "stream": True}) as given:
        for data in given.iter_raw():
            received += data
            if received == event(CHUNK) + last:
                break
        assert len(records_of(client)) == 1
        end.set()
