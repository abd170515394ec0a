from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

import llm_cost_ops
from llm_cost_ops import (
    APIError,
    CircuitBreakerConfig,
    ClientConfig,
    ConfigurationError,
    CostOpsClient,
    MetricsConfig,
    RetryConfig,
    ServerError,
)
from llm_cost_ops.interceptors.circuit_breaker import CircuitBreaker
from llm_cost_ops.interceptors.metrics import (
    CallMetrics,
    CallObservation,
    OpenTelemetryExporter,
    PrometheusExporter,
    exporters_of,
)
from llm_cost_ops.interceptors.retry import Retry
from llm_cost_ops.rpc.status import KNOWN_CODES, StatusCode
from llm_cost_ops.testing import Delay, Fault, memory_client
from tests.calls import DONE, async_channel, put, sync_channel

PUT_NAME = "tiny.v1.NoteService.PutNote"


class Kept:
    def __init__(self) -> None:
        self.seen: list[CallObservation] = []

    def observe(self, observation: CallObservation) -> None:
        self.seen.append(observation)


def test_one_observation_per_call() -> None:
    kept = Kept()
    retry = Retry(RetryConfig(jitter=False))
    put(sync_channel([Fault(429), Delay(0.25, DONE)], CallMetrics([kept]), retry))
    assert kept.seen == [CallObservation(PUT_NAME, "OK", 0.75, 2, 0.5)]


async def test_failures_and_the_breaker_are_observed() -> None:
    kept, breaker = Kept(), CircuitBreaker(CircuitBreakerConfig(failure_threshold=1))
    channel = async_channel([Fault(503)], CallMetrics([kept], None, breaker.breaker), breaker)
    for _ in range(2):
        with pytest.raises(ServerError):
            await put(channel)
    assert [(o.code, o.attempts, o.breaker) for o in kept.seen] == [
        ("UNAVAILABLE", 1, "open"),
        ("CIRCUIT_OPEN", 0, "open"),
    ]


def test_codes_that_others_make_up_are_no_labels() -> None:
    kept = Kept()
    script = [
        *(Fault(429, error_code=f"gateway-{number}") for number in range(20)),
        Fault(StatusCode.UNAVAILABLE, error_code="OVERLOADED"),
        Fault(507, error_code="STORAGE_FULL"),
    ]
    channel = sync_channel(script, CallMetrics([kept]))
    for _ in script:
        with pytest.raises(APIError):
            put(channel)
    assert [seen.code for seen in kept.seen] == [*["RESOURCE_EXHAUSTED"] * 20, "OVERLOADED", "STORAGE_FULL"]


def test_codes_of_our_own_are_known() -> None:
    sources = [path.read_text() for path in Path(llm_cost_ops.__file__).parent.rglob("*.py")]
    named = {code for text in sources for code in re.findall(r'\b(?:error_)?code="([A-Z_]+)"', text)}
    assert {"STORAGE_UNUSABLE", "CIRCUIT_OPEN"} < named <= KNOWN_CODES


def test_an_exporter_that_fails_harms_no_call(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def observe(self, observation: CallObservation) -> None:
            raise OSError("disk full")

    kept = Kept()
    assert put(sync_channel([DONE], CallMetrics([Broken(), kept]))) is DONE
    assert len(kept.seen) == 1
    assert logging.ERROR in [record.levelno for record in caplog.records]


def test_prometheus() -> None:
    registry = CollectorRegistry()
    breaker = CircuitBreaker(CircuitBreakerConfig(failure_threshold=1))
    first, second = PrometheusExporter("a", registry), PrometheusExporter("b", registry)
    script = [Fault(429), DONE, DONE, Fault(503)]
    metrics = CallMetrics([first, second], None, breaker.breaker)
    channel = sync_channel(script, metrics, Retry(RetryConfig(jitter=False)), breaker)
    put(channel)
    put(channel)
    with pytest.raises(ServerError):
        put(channel)
    labels = {"service": "a", "method": PUT_NAME}

    def value(name: str, **more: str) -> float | None:
        return registry.get_sample_value(name, {**labels, **more})

    assert value("llm_cost_ops_calls_total", code="OK") == 2
    assert value("llm_cost_ops_calls_total", code="UNAVAILABLE") == 1
    assert value("llm_cost_ops_attempts_total") == 4
    assert value("llm_cost_ops_waited_seconds_total") == 0.5
    assert value("llm_cost_ops_call_seconds_count") == 3
    assert registry.get_sample_value("llm_cost_ops_breaker_open", {"service": "b"}) == 1


def test_a_client_takes_exporters_of_ones_own() -> None:
    kept = Kept()
    config = ClientConfig(base_url="sqlite://").with_metrics(exporters=[kept])
    with CostOpsClient(config=config) as client:
        client.health()
    assert [o.method.rpartition(".")[2] for o in kept.seen] == ["GetHealth"]
    with pytest.raises(ConfigurationError, match="exporters"):
        MetricsConfig(exporters=(print,))


def test_a_missing_library_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigurationError, match=r"llm-cost-ops\[metrics\]"):
        exporters_of(MetricsConfig(enabled=True, prometheus_enabled=True))


def test_without_an_sdk_opentelemetry_does_nothing() -> None:
    exporters, tracer = exporters_of(MetricsConfig(enabled=True, opentelemetry_enabled=True))
    assert put(sync_channel([DONE], CallMetrics(exporters, tracer))) is DONE


@pytest.fixture
def telemetry() -> Any:
    """An OpenTelemetry SDK that keeps everything in memory."""
    sdk_metrics = pytest.importorskip("opentelemetry.sdk.metrics")
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    reader, spans, tracing = InMemoryMetricReader(), InMemorySpanExporter(), TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    meters = sdk_metrics.MeterProvider([reader])
    yield reader, spans, tracing.get_tracer("tests"), meters
    meters.shutdown()


def test_opentelemetry(telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry import metrics
    from opentelemetry.trace import StatusCode

    reader, spans, tracer, meters = telemetry
    monkeypatch.setattr(metrics, "get_meter", meters.get_meter)
    breaker = CircuitBreaker(CircuitBreakerConfig(failure_threshold=9))
    measured = CallMetrics([OpenTelemetryExporter("svc")], tracer, breaker.breaker)
    channel = sync_channel([DONE, Fault(500)], measured, breaker)
    with tracer.start_as_current_span("outer"):
        put(channel)
        with pytest.raises(ServerError):
            put(channel)
    inner, failed, outer = spans.get_finished_spans()
    assert inner.name == PUT_NAME
    assert inner.parent.span_id == failed.parent.span_id == outer.context.span_id
    assert inner.attributes["rpc.method"] == "PutNote"
    assert failed.status.status_code is StatusCode.ERROR
    sent = channel.core.transport.calls[0].headers.get("traceparent")
    assert sent.startswith(f"00-{inner.context.trace_id:032x}-{inner.context.span_id:016x}-")
    data = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    names = {metric.name: metric for metric in data}
    assert set(names) >= {"rpc.client.duration", "llm_cost_ops.attempts", "llm_cost_ops.breaker_open"}
    points = names["rpc.client.duration"].data.data_points
    assert {point.attributes["rpc.code"] for point in points} == {"OK", "INTERNAL"}


def test_a_trace_that_is_no_metadata_stays_behind(
    telemetry: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from opentelemetry import propagate

    monkeypatch.setattr(propagate, "inject", lambda carrier: carrier.update(baggage="ü", traceparent="00-1"))
    channel = sync_channel([DONE], CallMetrics([], telemetry[2]))
    put(channel)
    assert channel.core.transport.calls[0].headers.get("traceparent") == "00-1"
    assert "baggage" in caplog.text


def test_two_clients_register_once() -> None:
    config = ClientConfig().with_metrics(prometheus_enabled=True)

    def counted() -> float:
        return sum(
            sample.value
            for family in REGISTRY.collect()
            for sample in family.samples
            if sample.name.endswith("_calls_total") and sample.labels.get("method", "").endswith("GetHealth")
        )

    before = counted()
    for _ in range(2):
        with memory_client(config=config) as client:
            client.health()
    assert counted() == before + 2
