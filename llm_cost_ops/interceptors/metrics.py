"""Counts and times calls, for Prometheus, OpenTelemetry, or an exporter of your own."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from llm_cost_ops.config import MetricsConfig
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import UnaryContinuation

__all__ = ["CallMetrics", "CallObservation", "MetricsExporter", "exporters_of"]


class CallObservation(NamedTuple):
    """One finished call. `duration` and `waited` are seconds; `code` is "OK" or the error's."""

    method: str
    code: str
    duration: float
    attempts: int
    waited: float


class MetricsExporter(Protocol):
    """What observations go to. It is called once per call, must be quick, and must not raise."""

    def observe(self, observation: CallObservation) -> None:
        """Take one observation."""


class CallMetrics:
    """Hands one observation per call to every exporter, and spans to OpenTelemetry if there is a tracer."""

    def __init__(self, exporters: list[MetricsExporter], tracer: Any = None) -> None:
        self._exporters = exporters
        self._tracer = tracer

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation, request: Any, context: CallContext
    ) -> Any:
        if self._tracer is None:
            return await self._measured(continuation, request, context)
        from opentelemetry import propagate, trace

        with self._tracer.start_as_current_span(
            context.method.full_name, kind=trace.SpanKind.CLIENT, attributes={"rpc.system": "llm_cost_ops"}
        ):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            for name, value in carrier.items():
                context.metadata.set(name, value)
            return await self._measured(continuation, request, context)

    async def _measured(self, continuation: UnaryContinuation, request: Any, context: CallContext) -> Any:
        started = context.runtime.monotonic()
        code = "OK"
        try:
            return await continuation(request, context)
        except BaseException as error:
            code = getattr(error, "code", "") or type(error).__name__
            raise
        finally:
            duration = context.runtime.monotonic() - started
            observation = CallObservation(
                context.method.full_name, code, duration, context.attempt, context.waited
            )
            for exporter in self._exporters:
                exporter.observe(observation)


class PrometheusExporter:
    """Prometheus collectors in a registry, by default the library's own."""

    def __init__(self, service_name: str, registry: Any = None) -> None:
        from prometheus_client import REGISTRY

        self._service = service_name
        self._calls, self._seconds, self._attempts, self._waited = _collectors(registry or REGISTRY)

    def observe(self, observation: CallObservation) -> None:
        labels = (self._service, observation.method)
        self._calls.labels(*labels, observation.code).inc()
        self._seconds.labels(*labels).observe(observation.duration)
        self._attempts.labels(*labels).inc(observation.attempts)
        self._waited.labels(*labels).inc(observation.waited)


_registered: list[tuple[Any, tuple[Any, Any, Any, Any]]] = []


def _collectors(registry: Any) -> tuple[Any, Any, Any, Any]:
    """The collectors of a registry, which takes each name once: several clients share them."""
    from prometheus_client import Counter, Histogram

    for known, collectors in _registered:
        if known is registry:
            return collectors
    labels = ["service", "method"]
    made = (
        Counter("llm_cost_ops_calls", "Calls by outcome.", [*labels, "code"], registry=registry),
        Histogram("llm_cost_ops_call_seconds", "Seconds of a call.", labels, registry=registry),
        Counter("llm_cost_ops_attempts", "Attempts, retries included.", labels, registry=registry),
        Counter("llm_cost_ops_waited_seconds", "Seconds waited before attempts.", labels, registry=registry),
    )
    _registered.append((registry, made))
    return made


class OpenTelemetryExporter:
    """Instruments of the global meter provider."""

    def __init__(self, service_name: str) -> None:
        from opentelemetry import metrics

        meter = metrics.get_meter("llm_cost_ops")
        self._service = service_name
        self._seconds = meter.create_histogram("rpc.client.duration", "s", "Duration of a call.")
        self._attempts = meter.create_counter("llm_cost_ops.attempts", "1", "Attempts, retries included.")
        self._waited = meter.create_counter("llm_cost_ops.waited", "s", "Seconds waited before attempts.")

    def observe(self, observation: CallObservation) -> None:
        labels = {"service.name": self._service, "rpc.method": observation.method}
        self._seconds.record(observation.duration, {**labels, "rpc.code": observation.code})
        self._attempts.add(observation.attempts, labels)
        self._waited.add(observation.waited, labels)


def exporters_of(config: MetricsConfig) -> tuple[list[MetricsExporter], Any]:
    """The exporters and the tracer that a configuration asks for."""
    exporters: list[MetricsExporter] = []
    tracer = None
    try:
        if config.prometheus_enabled:
            exporters.append(PrometheusExporter(config.service_name))
        if config.opentelemetry_enabled:
            from opentelemetry import trace

            exporters.append(OpenTelemetryExporter(config.service_name))
            tracer = trace.get_tracer("llm_cost_ops")
    except ImportError as error:
        raise ConfigurationError(
            f"metrics need a library that is not installed ({error.name}): "
            "pip install 'llm-cost-ops[metrics]'",
            parameter="metrics",
        ) from None
    return exporters, tracer
