"""An SDK's hook, a callback, the proxy and a span may all see one call: it counts once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from llm_cost_ops import ClientConfig, CostOpsClient
from llm_cost_ops.callbacks.records import payload_record
from llm_cost_ops.types import UsageQuality, UsageRecord
from tests.proxies import ANSWER, CHAT, CHUNK, PATH, Provider, broken_stream, event, running_proxy

EMBEDDINGS = {"object": "list", "model": "e", "data": [], "usage": {"prompt_tokens": 9, "total_tokens": 9}}
ID = "chatcmpl-BZx7Lq2mKfWc9TnR4vYs"
SPAN = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o",
    "gen_ai.response.id": ID,
    "gen_ai.usage.input_tokens": 1000,
    "gen_ai.usage.output_tokens": 7,
}


class Seen:
    """An application and a proxy that record into one ledger, each by itself."""

    def __init__(self, path: Path, provider: Provider, *, upstream: str = "openai") -> None:
        self.path = path
        self.provider = provider
        self.upstream = upstream

    def __enter__(self) -> Self:
        base_url = f"sqlite:///{self.path}/costs.db"
        self.behind = CostOpsClient(config=ClientConfig(base_url=base_url, organization_id="acme"))
        self._running = running_proxy({self.upstream: self.provider.url}, self.behind)
        self.url = self._running.__enter__()
        config = ClientConfig(base_url=base_url, organization_id="acme", recording_proxy=self.url)
        self.app = CostOpsClient(config=config)
        self.unaware = CostOpsClient(config=config.replace(recording_proxy=None))
        return self

    def __exit__(self, *error: object) -> None:
        self._running.__exit__(None, None, None)
        for client in (self.behind, self.app, self.unaware):
            client.close()

    def post(
        self, client: CostOpsClient, body: dict[str, Any], path: str = "/v1/chat/completions"
    ) -> httpx.Response:
        with client.instrument(httpx.Client()) as http:
            return http.post(f"{self.url}/{self.upstream}{path}", json=body)

    def read(self, client: CostOpsClient, body: dict[str, Any]) -> bytes:
        """A call whose answer is read bit by bit, as SDKs read streams."""
        with (
            client.instrument(httpx.Client()) as http,
            http.stream("POST", self.url + PATH, json=body) as answer,
        ):
            return answer.read()

    def records(self) -> list[UsageRecord]:
        self.received = 0
        for client in (self.behind, self.app, self.unaware):
            report = client.flush(10)
            self.received += report.recorded
            assert report.conflicts == 0
            assert report.rejected == []
        return list(self.behind.usage.list())


@pytest.fixture
def seen(tmp_path: Path, provider: Provider) -> Iterator[Seen]:
    with Seen(tmp_path, provider) as made:
        yield made


def stream(handler: Any, body: bytes) -> None:
    handler.stream()
    handler.part(event(CHUNK))
    if b"include_usage" in body:
        handler.part(event({**CHUNK, "choices": [], "usage": ANSWER["usage"]}))
    handler.part(event(b"[DONE]"))
    handler.part(b"")


def answering(provider: Provider, answer: dict[str, Any] | None) -> None:
    if answer is None:
        provider.answer = lambda handler: stream(handler, provider.seen[-1].body)
    else:
        provider.answer = lambda handler: handler.whole(json.dumps(answer).encode())


@pytest.mark.parametrize("aware", [True, False])
def test_four_observers_of_one_call_count_once(seen: Seen, provider: Provider, *, aware: bool) -> None:
    """A hook, the proxy, a callback, as those of frameworks make their records, and a span around all."""
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra [dev]")
    from llm_cost_ops.telemetry import CostOpsSpanProcessor

    answering(provider, {**ANSWER, "id": ID})
    app = seen.app if aware else seen.unaware
    tracing = trace.TracerProvider(shutdown_on_exit=False)
    tracing.add_span_processor(CostOpsSpanProcessor(app))
    with tracing.get_tracer("test").start_as_current_span("chat gpt-4o") as span:
        given = seen.post(app, CHAT).json()
        app.usage.record(payload_record(given, source="litellm", provider="openai"))
        span.set_attributes(SPAN)
    tracing.shutdown()
    assert [record.input_tokens for record in seen.records()] == [1000]
    assert seen.received == (3 if aware else 4)


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("upstream", ["openai", "vllm"])
def test_hook_and_proxy_count_once(tmp_path: Path, provider: Provider, *, aware: bool, upstream: str) -> None:
    """Without the setting, the ids of answers join them, as far as they are unique."""
    answering(provider, ANSWER)
    with Seen(tmp_path, provider, upstream=upstream) as seen:
        seen.post(seen.app if aware else seen.unaware, CHAT)
        records = seen.records()
    expected = 1 if aware or upstream == "openai" else 2
    assert [record.total_tokens for record in records] == [1007] * expected


@pytest.mark.parametrize("upstream", ["openai", "vllm"])
def test_answers_without_an_id_count_once_by_the_key_that_is_handed_on(
    tmp_path: Path, provider: Provider, upstream: str
) -> None:
    answering(provider, EMBEDDINGS)
    with Seen(tmp_path, provider, upstream=upstream) as seen:
        for _ in range(2):
            seen.post(seen.app, {"model": "e", "input": "x"}, "/v1/embeddings")
        records = seen.records()
    assert [record.input_tokens for record in records] == [9, 9]
    keys = {record.idempotency_key for record in records}
    assert len(keys) == 2
    sent = [name for each in provider.seen for name, _ in each.headers]
    assert [name for name in sent if name.startswith("x-lco")] == []


def test_a_stream_that_did_not_ask_for_usage_counts_once(seen: Seen, provider: Provider) -> None:
    answering(provider, None)
    given = seen.post(seen.app, {**CHAT, "stream": True})
    assert given.content == event(CHUNK) + event(b"[DONE]")
    (record,) = seen.records()
    assert (record.total_tokens, record.source) == (1007, "proxy")


def test_the_proxy_records_as_the_hooks_attributes_say(seen: Seen, provider: Provider) -> None:
    answering(provider, ANSWER)
    labels = {"feature": "search", "Not-For-Headers": "x"}
    tags = ["a,b", "100%"]
    with seen.app.attribute(user_id="ü-1", session_id="s", project_id="p", labels=labels, tags=tags):
        seen.post(seen.app, CHAT)
    (record,) = seen.records()
    assert (record.source, record.user_id, record.session_id) == ("proxy", "ü-1", "s")
    assert (record.project_id, record.labels, record.tags) == ("p", {"feature": "search"}, tags)


def test_an_answer_that_breaks_off_counts_once(seen: Seen, provider: Provider) -> None:
    provider.answer = broken_stream
    with pytest.raises(httpx.RemoteProtocolError):
        seen.read(seen.app, {**CHAT, "stream": True})
    (record,) = seen.records()
    assert record.quality == UsageQuality.UNKNOWN


def test_a_proxy_that_is_gone_before_it_recorded_leaves_it_to_the_hook(
    seen: Seen, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_cost_ops.instrumentation.calls import Call

    real = Call.finish

    def finish(call: Call, *, finished: bool) -> None:
        """The proxy's own is lost, as when its process is killed."""
        if call._options.source != "proxy":
            real(call, finished=finished)

    monkeypatch.setattr(Call, "finish", finish)
    provider.answer = broken_stream
    with pytest.raises(httpx.RemoteProtocolError):
        seen.read(seen.app, {**CHAT, "stream": True})
    (record,) = seen.records()
    assert (record.quality, record.source) == (UsageQuality.UNKNOWN, "instrument")


def test_nothing_is_handed_on_to_others_than_the_configured_proxy(provider: Provider) -> None:
    config = ClientConfig(
        base_url="sqlite://",
        organization_id="acme",
        recording_proxy=provider.url.replace("127.0.0.1", "localhost"),
    )
    with CostOpsClient(config=config) as client, client.instrument(httpx.Client()) as http:
        http.post(provider.url + "/v1/chat/completions", json=CHAT)
        client.flush(10)
        assert len(list(client.usage.list())) == 1
    assert [name for name, _ in provider.seen[0].headers if name.startswith("x-lco")] == []


@pytest.mark.parametrize(
    ("proxy", "url", "serves"),
    [
        ("http://p:8090", "http://p:8090/openai/v1", True),
        ("http://p:8090/", "http://p:8091/openai/v1", False),
        ("http://p", "http://p:80/x", True),
        ("https://p", "https://p/x", True),
        ("https://p:443", "https://p/x", True),
        ("https://p", "http://p/x", False),
        ("http://p", "http://p.evil.example/x", False),
        ("http://[::1]:8090", "http://[::1]:8090/x", True),
    ],
)
def test_which_urls_lie_on_a_proxy(proxy: str, url: str, serves: bool) -> None:
    from llm_cost_ops.instrumentation import RecordingProxy

    assert RecordingProxy(url=proxy, headers=dict).serves(httpx.URL(url)) is serves
