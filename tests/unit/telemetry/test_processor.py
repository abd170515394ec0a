"""The span processor on spans that are made by hand, with the real SDK of OpenTelemetry."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Status, StatusCode, Tracer

from llm_cost_ops import CostOpsClient
from llm_cost_ops.telemetry import CostOpsSpanProcessor
from llm_cost_ops.types import UsageRecord

CALL: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.response.model": "gpt-4o",
    "gen_ai.usage.input_tokens": 1000,
    "gen_ai.usage.output_tokens": 500,
}
UNKNOWN = {name: value for name, value in CALL.items() if "usage" not in name}


def tracer_of(client: CostOpsClient | None, **attribution: Any) -> Tracer:
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(CostOpsSpanProcessor(client, **attribution))
    return provider.get_tracer("test")


def recorded(client: CostOpsClient) -> list[UsageRecord]:
    report = client.flush(10)
    assert report.rejected == []
    return list(client.usage.list(organization_id="acme"))


def test_a_call_becomes_a_record_of_its_block(client: CostOpsClient) -> None:
    tracer = tracer_of(client, project_id="p-1", labels={"team": "search"})
    with (
        client.attribute(user_id="u-1"),
        tracer.start_as_current_span("agent", attributes={"gen_ai.operation.name": "invoke_agent"}),
        tracer.start_as_current_span("chat", attributes={**CALL, "session.id": "s-1"}) as span,
    ):
        context = span.get_span_context()
    [record] = recorded(client)
    assert (record.input_tokens, record.output_tokens) == (1000, 500)
    assert str(record.estimated_cost) == "0.0075"
    assert record.trace_id == f"{context.trace_id:032x}"
    assert record.span_id == f"{context.span_id:016x}"
    assert record.idempotency_key == f"{record.trace_id}:{record.span_id}"
    assert (record.user_id, record.project_id, record.session_id) == ("u-1", "p-1", "s-1")
    assert record.labels == {"service": "shop", "team": "search"}
    assert record.observation
    assert record.timestamp is not None


def test_of_spans_in_each_other_the_inner_call_counts(client: CostOpsClient) -> None:
    tracer = tracer_of(client)
    with tracer.start_as_current_span("framework", attributes=CALL) as outer:
        with tracer.start_as_current_span("sdk", attributes=CALL) as inner:
            pass
        with tracer.start_as_current_span("sdk", attributes={**CALL, "gen_ai.usage.input_tokens": 7}):
            pass
    assert len(recorded(client)) == 2
    assert f"{outer.get_span_context().span_id:016x}" not in {each.span_id for each in recorded(client)}
    assert f"{inner.get_span_context().span_id:016x}" in {each.span_id for each in recorded(client)}


def test_failed_calls_are_none_and_silent_ones_are_unknown(client: CostOpsClient) -> None:
    tracer = tracer_of(client)
    with tracer.start_as_current_span("chat", attributes=UNKNOWN) as span:
        span.set_status(Status(StatusCode.ERROR))
    with tracer.start_as_current_span("chat", attributes=UNKNOWN):
        pass
    with tracer.start_as_current_span("chat", attributes={**CALL, "gen_ai.usage.total_tokens": 3}):
        pass
    with tracer.start_as_current_span("GET /", attributes={"http.request.method": "GET"}):
        pass
    assert [record.quality.value for record in recorded(client)] == ["unknown", "unknown"]


@pytest.mark.parametrize(
    ("provider", "response_id", "key"),
    [
        ("openai", "chatcmpl-C8kvVCkQJyaqHnRB3lPBtVzkT7Qrf", "openai:chatcmpl-C8kvVCkQJyaqHnRB3lPBtVzkT7Qrf"),
        ("anthropic", "msg_01XFDUDYJgAACzvnptvVoYEL", "anthropic:msg_01XFDUDYJgAACzvnptvVoYEL"),
        ("gcp.gemini", "4vBUaMzpJqGfmtkPuKa4yQk", "google:4vBUaMzpJqGfmtkPuKa4yQk"),
        # As a server of one's own gives them, behind OpenAI's SDK.
        ("openai", "chatcmpl-123", None),
        ("ollama", "chatcmpl-123", None),
    ],
)
def test_the_key_is_the_response_id_where_that_is_unique(
    client: CostOpsClient, provider: str, response_id: str, key: str | None
) -> None:
    stated = {"gen_ai.provider.name": provider, "gen_ai.response.id": response_id}
    with tracer_of(client).start_as_current_span("chat", attributes={**CALL, **stated}) as span:
        context = span.get_span_context()
    [record] = recorded(client)
    assert record.idempotency_key == (key or f"{context.trace_id:032x}:{context.span_id:016x}")


def test_a_record_of_the_same_response_is_a_duplicate(client: CostOpsClient) -> None:
    response_id = "chatcmpl-C8kvVCkQJyaqHnRB3lPBtVzkT7Qrf"
    client.usage.submit(
        organization_id="acme", provider="openai", model_id="gpt-4o", input_tokens=1000, output_tokens=500,
        idempotency_key=f"openai:{response_id}",
    )  # fmt: skip
    with tracer_of(client).start_as_current_span("x", attributes={**CALL, "gen_ai.response.id": response_id}):
        pass
    assert client.flush(10).duplicates == 1
    assert len(recorded(client)) == 1


def test_nothing_is_raised_when_records_are_not_taken(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_COST_OPS_BASE_URL", "ftp://nowhere")
    with caplog.at_level(logging.WARNING), tracer_of(None).start_as_current_span("x", attributes=CALL):
        pass
    assert "a call was not recorded" in caplog.text


def test_without_a_client_it_is_the_process_s(client: CostOpsClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_cost_ops.client.observer._default", client)
    with tracer_of(None).start_as_current_span("x", attributes=CALL):
        pass
    assert len(recorded(client)) == 1


def test_force_flush_sends(client: CostOpsClient) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(CostOpsSpanProcessor(client))
    with provider.get_tracer("test").start_as_current_span("x", attributes=CALL):
        pass
    assert provider.force_flush()
    assert len(list(client.usage.list(organization_id="acme"))) == 1


def test_spans_that_never_end_are_forgotten(client: CostOpsClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_cost_ops.telemetry.processor._MAX_OPEN", 3)
    processor = CostOpsSpanProcessor(client)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("test")
    for _ in range(10):
        tracer.start_span("outer")
        with tracer.start_as_current_span("outer"), tracer.start_as_current_span("x", attributes=CALL):
            pass
    assert len(processor._repeated) <= 3
    assert len(recorded(client)) == 10
