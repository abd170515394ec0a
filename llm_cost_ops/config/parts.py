"""The parts of a configuration, each with the check of its values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec

from llm_cost_ops.exceptions import ConfigurationError

__all__ = [
    "BatchingConfig",
    "CacheConfig",
    "CircuitBreakerConfig",
    "Config",
    "ConnectionPoolConfig",
    "LoggingConfig",
    "MetricsConfig",
    "RateLimitConfig",
    "RecorderConfig",
    "RetryConfig",
    "TLSConfig",
    "flag",
    "number",
    "text",
    "wrong",
]


def wrong(parameter: str, rule: str, value: object) -> ConfigurationError:
    """The error for a value that breaks a rule."""
    return ConfigurationError(f"{parameter} {rule}, not {value!r}", parameter=parameter)


def number(
    parameter: str, value: object, minimum: float, *, above: bool = False, integer: bool = False
) -> None:
    """Refuse what is no finite number, or too small."""
    kinds = (int,) if integer else (int, float)
    word = "a whole number" if integer else "a number"
    rule = f"must be {word} {'above' if above else 'of at least'} {minimum:g}"
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise wrong(parameter, rule, value)
    if not (value > minimum if above else value >= minimum) or value == float("inf"):
        raise wrong(parameter, rule, value)


def flag(parameter: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise wrong(parameter, "must be True or False", value)


def text(parameter: str, value: object, allowed: tuple[str, ...] = ()) -> None:
    """Refuse what is no text, or not among those allowed."""
    if not isinstance(value, str) or (allowed and value not in allowed):
        # "" among them means that the option was not given.
        names = ", ".join(filter(None, allowed))
        raise wrong(parameter, f"must be one of {names}" if allowed else "must be text", value)


DEFAULT_KEEPALIVE_CONNECTIONS = 20

MAX_BATCH_RECORDS = 10_000
"""What a service takes in one batch (rules/requests.py, which stands above the configuration)."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What all configurations can do."""

    def replace(self, **changes: object) -> Self:
        """A copy with some parameters changed, checked again."""
        unknown = set(changes) - set(self.__struct_fields__)
        if unknown:
            name = min(unknown)
            raise ConfigurationError(f"{name} is no parameter of {type(self).__name__}", parameter=name)
        return type(self)(**{**msgspec.structs.asdict(self), **changes})


class RetryConfig(Config, frozen=True, kw_only=True):
    """When a failed call is tried again.

    The wait before retry n is `initial_backoff` x `backoff_factor` ** (n - 1) seconds, at most
    `max_backoff`, with full jitter; a server's hint (Retry-After, RetryInfo, pushback) wins, up to
    `max_backoff`. Only calls without side effects, and calls with an idempotency key, are retried
    once the request may have been applied. `budget` retries may be under way or recently spent for
    each client: each costs 1, each success gives `budget_refill` back. `max_retries=0` turns
    retrying off.
    """

    max_retries: int = 3
    initial_backoff: float = 0.5
    backoff_factor: float = 2.0
    max_backoff: float = 60.0
    jitter: bool = True
    retry_on_status: frozenset[int] = frozenset({408, 429, 500, 502, 503, 504})
    retry_on_network_error: bool = True
    budget: float = 10.0
    budget_refill: float = 0.1

    def __post_init__(self) -> None:
        number("max_retries", self.max_retries, 0, integer=True)
        number("initial_backoff", self.initial_backoff, 0)
        number("backoff_factor", self.backoff_factor, 1)
        number("max_backoff", self.max_backoff, 0)
        flag("jitter", self.jitter)
        flag("retry_on_network_error", self.retry_on_network_error)
        number("budget", self.budget, 0)
        number("budget_refill", self.budget_refill, 0)
        try:
            statuses = frozenset(self.retry_on_status)
        except TypeError:
            raise wrong("retry_on_status", "must be a set of HTTP statuses", self.retry_on_status) from None
        for status in statuses:
            if type(status) is not int or not 400 <= status <= 599:
                raise wrong("retry_on_status", "must hold HTTP statuses from 400 to 599", status)
        msgspec.structs.force_setattr(self, "retry_on_status", statuses)


class RateLimitConfig(Config, frozen=True, kw_only=True):
    """`max_requests` calls at once, and as many again in each `time_window` seconds; others wait in line.

    A token bucket: it holds `max_requests` tokens and fills at `max_requests / time_window` a
    second, so that in any t seconds at most that rate times t more than `max_requests` calls go out.
    With `adaptive` the limit also follows what the server says (X-RateLimit-*, Retry-After).
    """

    max_requests: int = 100
    time_window: float = 60.0
    adaptive: bool = False

    def __post_init__(self) -> None:
        number("max_requests", self.max_requests, 1, integer=True)
        number("time_window", self.time_window, 0, above=True)
        flag("adaptive", self.adaptive)


class CircuitBreakerConfig(Config, frozen=True, kw_only=True):
    """Opens after `failure_threshold` failures in a row; probes again after `recovery_time` seconds."""

    failure_threshold: int = 5
    recovery_time: float = 30.0

    def __post_init__(self) -> None:
        number("failure_threshold", self.failure_threshold, 1, integer=True)
        number("recovery_time", self.recovery_time, 0, above=True)


class CacheConfig(Config, frozen=True, kw_only=True):
    """Keeps answers of calls without side effects for `ttl` seconds, at most `max_entries` of them."""

    ttl: float = 30.0
    max_entries: int = 1024

    def __post_init__(self) -> None:
        number("ttl", self.ttl, 0, above=True)
        number("max_entries", self.max_entries, 1, integer=True)


class ConnectionPoolConfig(Config, frozen=True, kw_only=True):
    """Connections of a network transport: how many, how many idle ones, and for how many seconds.

    At most `max_in_flight` calls are with the server at a time, open streams among them; the others queue
    within their deadlines, first come, first served. Over HTTP each of them has a connection, and
    `max_connections` bounds them too. Over gRPC they share `grpc_channels` connections, and the settings
    of the others do not count. `max_keepalive_connections` None means 20, or `max_connections` where that is
    less; more than `max_connections` is refused.
    """

    max_connections: int = 100
    max_keepalive_connections: int | None = None
    keepalive_expiry: float = 5.0
    grpc_channels: int = 1
    max_in_flight: int = 100

    def __post_init__(self) -> None:
        number("max_connections", self.max_connections, 1, integer=True)
        if self.max_keepalive_connections is not None:
            number("max_keepalive_connections", self.max_keepalive_connections, 0, integer=True)
            if self.max_keepalive_connections > self.max_connections:
                rule = f"must be at most max_connections ({self.max_connections})"
                raise wrong("max_keepalive_connections", rule, self.max_keepalive_connections)
        number("keepalive_expiry", self.keepalive_expiry, 0)
        number("grpc_channels", self.grpc_channels, 1, integer=True)
        number("max_in_flight", self.max_in_flight, 1, integer=True)

    @property
    def keepalive_connections(self) -> int:
        """How many idle connections are kept."""
        given = self.max_keepalive_connections
        return min(DEFAULT_KEEPALIVE_CONNECTIONS, self.max_connections) if given is None else given


class BatchingConfig(Config, frozen=True, kw_only=True):
    """Submits that wait for their turn leave together.

    `max_in_flight` calls to `usage.submit` are sent at once, each alone; those that come meanwhile wait until
    one of them is answered, and then leave in a batch of at most `max_records` (up to 10,000) and about
    `max_bytes` of JSON. Once more wait than that, fewer batches are under way at a time, and larger ones. A
    ledger in memory, or in a file with durability "process", takes each at once, and has no use for it;
    threads that write to a file let one through at a time.
    """

    enabled: bool = True
    max_records: int = 1000
    max_bytes: int = 1024 * 1024
    max_in_flight: int = 4

    def __post_init__(self) -> None:
        flag("enabled", self.enabled)
        for parameter in ("max_records", "max_bytes", "max_in_flight"):
            number(parameter, getattr(self, parameter), 1, integer=True)
        if self.max_records > MAX_BATCH_RECORDS:
            raise wrong("max_records", f"must be at most {MAX_BATCH_RECORDS}", self.max_records)


class LoggingConfig(Config, frozen=True, kw_only=True):
    """One line per call on the standard logger `logger_name`.

    `level` is that of a call that succeeds, in any case ("debug"); failures log at WARNING or above. `format`
    is "text" or "json".
    """

    enabled: bool = False
    level: str = "INFO"
    logger_name: str = "llm_cost_ops"
    format: str = "text"

    def __post_init__(self) -> None:
        flag("enabled", self.enabled)
        text("level", self.level)
        msgspec.structs.force_setattr(self, "level", self.level.upper())
        text("level", self.level, ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))
        text("logger_name", self.logger_name)
        text("format", self.format, ("text", "json"))


class MetricsConfig(Config, frozen=True, kw_only=True):
    """Calls, durations, attempts, waits and the breaker's state, for Prometheus or OpenTelemetry
    (extra `[metrics]`), or for `exporters` of your own: objects with `observe(CallObservation)`.
    """

    enabled: bool = False
    prometheus_enabled: bool = False
    opentelemetry_enabled: bool = False
    service_name: str = "llm-cost-ops"
    exporters: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        flag("enabled", self.enabled)
        flag("prometheus_enabled", self.prometheus_enabled)
        flag("opentelemetry_enabled", self.opentelemetry_enabled)
        text("service_name", self.service_name)
        exporters = self.exporters
        if not isinstance(exporters, list | tuple) or not all(hasattr(e, "observe") for e in exporters):
            raise wrong("exporters", "must be a list of objects with an observe method", exporters)
        msgspec.structs.force_setattr(self, "exporters", tuple(exporters))


class RecorderConfig(Config, frozen=True, kw_only=True):
    """How `usage.record` keeps records until they are sent.

    At most `max_records` wait in memory, and about `max_bytes` of them as JSON. With `spool`, a folder, they
    wait there, at most `spool_bytes`: with `durability` "process" they survive the end of the process, with
    "disk", for which record() waits, a loss of power too. `overflow` says what happens to a record that does
    not fit: "drop_newest" (the default), "drop_oldest", "raise" (RecorderFullError), "block" (record()
    waits), or "spill" (the default with a spool: only a full spool drops). What is dropped is counted and
    logged. Closing takes at most `shutdown_timeout` seconds. `on_result(record, result)` and
    `on_error(record or None, reason)` are called from the recorder's thread, or from the caller's where with
    a spool a record can't be made or breaks a rule.
    """

    max_records: int = 10_000
    max_bytes: int = 16 * 1024 * 1024
    overflow: str = ""
    spool: str | None = None
    spool_bytes: int = 256 * 1024 * 1024
    durability: str = "process"
    shutdown_timeout: float = 2.0
    on_result: Callable[[Any, Any], object] | None = None
    on_error: Callable[[Any, str], object] | None = None

    def __post_init__(self) -> None:
        for parameter in ("max_records", "max_bytes", "spool_bytes"):
            number(parameter, getattr(self, parameter), 1, integer=True)
        text("overflow", self.overflow, ("", "block", "drop_newest", "drop_oldest", "raise", "spill"))
        if self.spool is not None and not (isinstance(self.spool, str) and self.spool):
            raise wrong("spool", "must be the path of a folder", self.spool)
        if self.overflow == "spill" and self.spool is None:
            raise wrong("overflow", "can be 'spill' only with a spool", self.overflow)
        text("durability", self.durability, ("disk", "process"))
        number("shutdown_timeout", self.shutdown_timeout, 0)
        for parameter in ("on_result", "on_error"):
            if getattr(self, parameter) is not None and not callable(getattr(self, parameter)):
                raise wrong(parameter, "must be a function", getattr(self, parameter))


class TLSConfig(Config, frozen=True, kw_only=True):
    """Paths of PEM files: the authorities to trust instead of the system's, and a client certificate."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def __post_init__(self) -> None:
        for parameter in ("ca_file", "cert_file", "key_file"):
            value = getattr(self, parameter)
            if value is not None and not (isinstance(value, str) and Path(value).is_file()):
                raise wrong(parameter, "must be the path of a file", value)
        if self.key_file is not None and self.cert_file is None:
            raise ConfigurationError("key_file needs cert_file", parameter="key_file")
