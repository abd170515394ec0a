"""Counts and times calls, for Prometheus, OpenTelemetry, or an exporter of your own."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from llm_cost_ops.config import MetricsConfig
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.interceptors.circuit_breaker import Breaker
from llm_cost_ops.interceptors.logging import outcome_name
from llm_cost_ops.lazy import missing_library
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.rpc.status import KNOWN_CODES, StatusCode

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer
    from prometheus_client import CollectorRegistry

__all__ = ["CallMetrics", "CallObservation", "MetricsExporter", "exporters_of"]


_log = logging.getLogger("llm_cost_ops")


class CallObservation(NamedTuple):
    """One finished call. `duration` and `waited` are seconds; `code` is "OK" or the error's.

    It may be a label: for a code of somebody else's, of which there may be any number, it is gRPC's status.

    `breaker` is the state of the circuit breaker after it, empty without one.
    """

    method: str
    code: str
    duration: float
    attempts: int
    waited: float
    breaker: str = ""


class MetricsExporter(Protocol):
    """What observations go to. It is called once per call and must be quick.

    What it raises is logged, and does not reach the caller.
    """

    def observe(self, observation: CallObservation) -> None:
        """Take one observation."""


class CallMetrics:
    """Hands one observation per call to every exporter, and spans to OpenTelemetry if there is a tracer."""

    def __init__(
        self,
        exporters: Sequence[MetricsExporter],
        tracer: Tracer | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self._exporters = tuple(exporters)
        self._tracer = tracer
        self._breaker = breaker

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        if self._tracer is None:
            return await self._measured(continuation, request, context)
        from opentelemetry import trace

        with trace.use_span(self._span(self._tracer, context), end_on_exit=True) as span:
            try:
                return await self._measured(continuation, request, context)
            finally:
                span.set_attribute("llm_cost_ops.attempts", context.attempt)

    async def intercept_unary_stream(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        # Not made the current one: between messages its caller's is.
        span = None if self._tracer is None else self._span(self._tracer, context)
        started, failure = context.runtime.monotonic(), None
        try:
            async with aclosing(continuation(request, context)) as messages:
                async for message in messages:
                    yield message
        except BaseException as error:
            failure = error
            raise
        finally:
            attempts = getattr(failure, "attempts", context.attempt)
            self._observe(context, started, failure, attempts)
            if span is not None:
                if isinstance(failure, Exception):
                    span.record_exception(failure)
                    span.set_status(_failed(failure))
                span.set_attribute("llm_cost_ops.attempts", context.attempt)
                span.end()

    intercept_stream_stream = intercept_unary_stream

    def _span(self, tracer: Tracer, context: CallContext) -> Span:
        """A span for a call, whose context travels in the metadata."""
        from opentelemetry import propagate, trace

        method = context.method
        facts = {"rpc.system": "llm_cost_ops", "rpc.service": method.service, "rpc.method": method.name}
        span = tracer.start_span(method.full_name, kind=trace.SpanKind.CLIENT, attributes=facts)
        carrier: dict[str, str] = {}
        with trace.use_span(span):
            propagate.inject(carrier)
        for name, value in carrier.items():
            try:
                context.metadata.set(name, value)
            except ValueError:
                _log.warning("the trace's %s is no metadata, and does not travel", name)
        return span

    async def _measured(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        started = context.runtime.monotonic()
        try:
            response = await continuation(request, context)
        except BaseException as error:
            self._observe(context, started, error, getattr(error, "attempts", context.attempt))
            raise
        self._observe(context, started, None, context.attempt)
        return response

    def _observe(
        self, context: CallContext, started: float, error: BaseException | None, attempts: int
    ) -> None:
        observation = CallObservation(
            context.method.full_name,
            _bounded(error),
            context.runtime.monotonic() - started,
            attempts,
            context.waited,
            "" if self._breaker is None else self._breaker.state.value,
        )
        for exporter in self._exporters:
            try:
                exporter.observe(observation)
            except Exception:  # noqa: BLE001  # somebody else's code, which may not harm the call
                _log.exception("a metrics exporter failed")


def _bounded(error: BaseException | None) -> str:
    """What a call ended with, in one of a limited number of words."""
    outcome = outcome_name(error)
    if outcome in KNOWN_CODES or outcome != getattr(error, "code", ""):
        return outcome
    status = getattr(error, "grpc_code", None)
    return status.name if isinstance(status, StatusCode) else "OTHER"


def _failed(error: Exception) -> Any:
    from opentelemetry import trace

    return trace.Status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}")


class PrometheusExporter:
    """Prometheus collectors in a registry, by default the library's own."""

    def __init__(self, service_name: str, registry: CollectorRegistry | None = None) -> None:
        from prometheus_client import REGISTRY

        self._service = service_name
        made = _collectors(registry or REGISTRY)
        self._calls, self._seconds, self._attempts, self._waited, self._open = made

    def observe(self, observation: CallObservation) -> None:
        labels = (self._service, observation.method)
        self._calls.labels(*labels, observation.code).inc()
        self._seconds.labels(*labels).observe(observation.duration)
        self._attempts.labels(*labels).inc(observation.attempts)
        self._waited.labels(*labels).inc(observation.waited)
        if observation.breaker:
            self._open.labels(self._service).set(observation.breaker != "closed")


_registered: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()


def _collectors(registry: Any) -> tuple[Any, ...]:
    """The collectors of a registry, which takes each name once: several clients share them."""
    from prometheus_client import Counter, Gauge, Histogram

    if registry in _registered:
        return _registered[registry]
    labels = ["service", "method"]
    made = (
        Counter("llm_cost_ops_calls", "Calls by outcome.", [*labels, "code"], registry=registry),
        Histogram("llm_cost_ops_call_seconds", "Seconds of a call.", labels, registry=registry),
        Counter("llm_cost_ops_attempts", "Attempts, retries included.", labels, registry=registry),
        Counter("llm_cost_ops_waited_seconds", "Seconds waited before attempts.", labels, registry=registry),
        Gauge("llm_cost_ops_breaker_open", "1 while the breaker is open.", ["service"], registry=registry),
    )
    _registered[registry] = made
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
        self._open = meter.create_gauge("llm_cost_ops.breaker_open", "1", "1 while the breaker is open.")

    def observe(self, observation: CallObservation) -> None:
        labels = {"service.name": self._service, "rpc.method": observation.method}
        self._seconds.record(observation.duration, {**labels, "rpc.code": observation.code})
        self._attempts.add(observation.attempts, labels)
        self._waited.add(observation.waited, labels)
        if observation.breaker:
            self._open.set(int(observation.breaker != "closed"), {"service.name": self._service})


def exporters_of(config: MetricsConfig) -> tuple[list[MetricsExporter], Any]:
    """The exporters and the tracer that a configuration asks for."""
    exporters: list[MetricsExporter] = list(config.exporters)
    tracer = None
    try:
        if config.prometheus_enabled:
            exporters.append(PrometheusExporter(config.service_name))
        if config.opentelemetry_enabled:
            from opentelemetry import trace

            exporters.append(OpenTelemetryExporter(config.service_name))
            tracer = trace.get_tracer("llm_cost_ops")
    except ImportError as error:
        raise ConfigurationError(str(missing_library(error, "MetricsConfig")), parameter="metrics") from None
    return exporters, tracer
