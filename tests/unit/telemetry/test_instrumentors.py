"""Real instrumentors, by the span processor and by the real exporter to a server."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from llm_cost_ops import CostOpsClient
from llm_cost_ops.telemetry import CostOpsSpanProcessor
from llm_cost_ops.types import UsageRecord
from tests.proxies import running_proxy
from tests.sdk_stub import Stub

openai = pytest.importorskip("openai", reason="needs the extra [sdks]")
exporters = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
NEEDED = "needs the extra [sdks]"
openllmetry = pytest.importorskip("opentelemetry.instrumentation.openai", reason=NEEDED)
openinference = pytest.importorskip("openinference.instrumentation.openai", reason=NEEDED)

# Of the instrumentors' own imports.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": MESSAGES}


class Switch(SpanProcessor):
    """Gives spans to the processors of the test that runs."""

    def __init__(self) -> None:
        self.processors: list[SpanProcessor] = []

    def on_end(self, span: ReadableSpan) -> None:
        for processor in self.processors:
            processor.on_end(span)


@pytest.fixture(scope="module", params=["openllmetry", "openinference"])
def switch(request: pytest.FixtureRequest) -> Iterator[Switch]:
    # Once for all tests: openllmetry keeps the first provider that it was given, uninstrumented or not.
    made = TracerProvider(shutdown_on_exit=False)
    processor = Switch()
    made.add_span_processor(processor)
    instrumentor = {"openllmetry": openllmetry, "openinference": openinference}[request.param]
    hook = instrumentor.OpenAIInstrumentor()
    before = {kind: dict(vars(kind)) for kind in sdk_classes()}
    hook.instrument(tracer_provider=made)
    yield processor
    hook.uninstrument()
    # openllmetry's uninstrument leaves all of it wrapped.
    for kind, attributes in before.items():
        for name, value in attributes.items():
            if vars(kind).get(name) is not value and not name.startswith("__"):
                setattr(kind, name, value)


def sdk_classes() -> set[type]:
    for name in ("beta", "chat", "completions", "embeddings", "images", "responses"):
        importlib.import_module(f"openai.resources.{name}")
    modules = [module for name, module in sys.modules.items() if name.startswith("openai.resources")]
    return {found for module in modules for found in vars(module).values() if isinstance(found, type)}


@pytest.fixture
def processors(switch: Switch) -> Iterator[list[SpanProcessor]]:
    yield switch.processors
    for processor in switch.processors:
        processor.shutdown()
    switch.processors.clear()


def chat(sdk: Any) -> None:
    sdk.chat.completions.create(**CHAT)


def stream(sdk: Any) -> None:
    list(sdk.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))


def silent_stream(sdk: Any) -> None:
    list(sdk.chat.completions.create(**CHAT, stream=True))


def response(sdk: Any) -> None:
    sdk.responses.create(model="gpt-4o", input="hi")


def response_stream(sdk: Any) -> None:
    list(sdk.responses.create(model="gpt-4o", input="hi", stream=True))


def embeddings(sdk: Any) -> None:
    sdk.embeddings.create(model="text-embedding-3-small", input="hi")


def closed_early(sdk: Any) -> None:
    chunks = sdk.chat.completions.create(**CHAT, stream=True)
    next(iter(chunks))
    chunks.close()


def failing(sdk: Any) -> None:
    with pytest.raises(openai.InternalServerError):
        sdk.chat.completions.create(model="always-fails", messages=MESSAGES)


WAYS = {
    chat: (1000, 7), stream: (1000, 7), silent_stream: "unknown", response: (1000, 7),
    response_stream: (1000, 7), embeddings: (1000, 0), closed_early: "unknown", failing: None,
}  # fmt: skip


@pytest.fixture
def sdk(stub: Stub) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{stub.url}/v1", api_key="k", max_retries=0) as made:
        yield made


def check(records: list[UsageRecord], expected: Any) -> None:
    if expected is None:
        assert records == []
        return
    [record] = records
    assert (record.provider, bool(record.trace_id), record.observation) == ("openai", True, True)
    if expected == "unknown":
        assert record.quality.value == "unknown"
        assert record.estimated_cost is None
    else:
        assert (record.input_tokens, record.output_tokens) == expected
        assert record.estimated_cost


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_processor_records(
    way: Callable[[Any], None], processors: list[SpanProcessor], sdk: Any, client: CostOpsClient
) -> None:
    processors.append(CostOpsSpanProcessor(client))
    way(sdk)
    assert client.flush(10).rejected == []
    check(list(client.usage.list(organization_id="acme")), WAYS[way])


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_exporter_s_spans_are_recorded_by_the_server(
    compression: str, processors: list[SpanProcessor], sdk: Any, server: tuple[str, CostOpsClient]
) -> None:
    address, reader = server
    exporter = exporters.OTLPSpanExporter(
        f"{address}/v1/traces",
        headers={"x-lco-organization": "acme"},
        compression=exporters.Compression(compression),
    )
    processors.append(BatchSpanProcessor(exporter))
    for way in WAYS:
        way(sdk)
    assert processors[0].force_flush()
    records = list(reader.usage.list(organization_id="acme"))
    counted = [(each.input_tokens, each.output_tokens) for each in records if each.quality.value != "unknown"]
    expected = [counts for counts in WAYS.values() if isinstance(counts, tuple)]
    assert sorted(map(str, counted)) == sorted(map(str, expected))
    assert len(records) == len(WAYS) - 1


@pytest.mark.parametrize("way", [chat, stream, response, response_stream], ids=lambda way: way.__name__)
def test_a_span_and_the_hook_count_a_call_once(
    way: Callable[[Any], None], processors: list[SpanProcessor], sdk: Any, client: CostOpsClient
) -> None:
    processors.append(CostOpsSpanProcessor(client))
    way(client.instrument(sdk, provider="openai"))
    report = client.flush(10)
    assert (report.recorded, report.duplicates, report.conflicts) == (2, 1, 0)
    assert len(list(client.usage.list(organization_id="acme"))) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_hook_callback_span_and_proxy_count_a_call_once(
    processors: list[SpanProcessor], stub: Stub, client: CostOpsClient
) -> None:
    langchain_openai = pytest.importorskip("langchain_openai", reason=NEEDED)
    from llm_cost_ops.callbacks.langchain import CostOpsCallbackHandler

    processors.append(CostOpsSpanProcessor(client))
    with running_proxy({"openai": stub.url}, client) as proxy:
        model = langchain_openai.ChatOpenAI(
            model="gpt-4o", base_url=f"{proxy}/openai/v1", api_key="k", max_retries=0
        )
        client.instrument(model, provider="openai")
        model.invoke("hi", config={"callbacks": [CostOpsCallbackHandler(client)]})
    report = client.flush(10)
    assert (report.recorded, report.delivered, report.duplicates) == (4, 1, 3)
    [record] = client.usage.list(organization_id="acme")
    assert (record.input_tokens, record.output_tokens) == (1000, 7)
