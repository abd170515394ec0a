"""How a client is set up. Configurations are immutable and checked when they are made.

Every wrong value raises ConfigurationError that names the parameter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from llm_cost_ops.exceptions import ConfigurationError

__all__ = [
    "CacheConfig",
    "CircuitBreakerConfig",
    "ClientConfig",
    "ConnectionPoolConfig",
    "LoggingConfig",
    "MetricsConfig",
    "RateLimitConfig",
    "RetryConfig",
    "TLSConfig",
]

DEFAULT_BASE_URL = "sqlite:///llm_cost_ops.db"
SCHEMES = ("http", "https", "grpc", "grpcs", "sqlite")

C = TypeVar("C", bound="_Config")


def _wrong(parameter: str, rule: str, value: Any) -> ConfigurationError:
    return ConfigurationError(f"{parameter} {rule}, not {value!r}", parameter=parameter)


def _number(
    parameter: str, value: Any, minimum: float, *, above: bool = False, integer: bool = False
) -> None:
    kinds = (int,) if integer else (int, float)
    word = "a whole number" if integer else "a number"
    rule = f"must be {word} {'above' if above else 'of at least'} {minimum:g}"
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise _wrong(parameter, rule, value)
    if not (value > minimum if above else value >= minimum) or value == float("inf"):
        raise _wrong(parameter, rule, value)


def _flag(parameter: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _wrong(parameter, "must be True or False", value)


def _text(parameter: str, value: Any, allowed: tuple[str, ...] = ()) -> None:
    if not isinstance(value, str) or (allowed and value not in allowed):
        raise _wrong(parameter, f"must be one of {', '.join(allowed)}" if allowed else "must be text", value)


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    def replace(self, **changes: Any) -> Self:
        """A copy with some parameters changed, checked again."""
        unknown = set(changes) - set(self.__struct_fields__)
        if unknown:
            name = min(unknown)
            raise ConfigurationError(f"{name} is no parameter of {type(self).__name__}", parameter=name)
        return type(self)(**{**msgspec.structs.asdict(self), **changes})


class RetryConfig(_Config, frozen=True, kw_only=True):
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
        _number("max_retries", self.max_retries, 0, integer=True)
        _number("initial_backoff", self.initial_backoff, 0)
        _number("backoff_factor", self.backoff_factor, 1)
        _number("max_backoff", self.max_backoff, 0)
        _flag("jitter", self.jitter)
        _flag("retry_on_network_error", self.retry_on_network_error)
        _number("budget", self.budget, 0)
        _number("budget_refill", self.budget_refill, 0)
        try:
            statuses = frozenset(self.retry_on_status)
        except TypeError:
            raise _wrong("retry_on_status", "must be a set of HTTP statuses", self.retry_on_status) from None
        for status in statuses:
            if type(status) is not int or not 400 <= status <= 599:
                raise _wrong("retry_on_status", "must hold HTTP statuses from 400 to 599", status)
        msgspec.structs.force_setattr(self, "retry_on_status", statuses)


class RateLimitConfig(_Config, frozen=True, kw_only=True):
    """`max_requests` calls at once, and as many again in each `time_window` seconds; others wait in line.

    A token bucket: it holds `max_requests` tokens and fills at `max_requests / time_window` a
    second, so that in any t seconds at most that rate times t more than `max_requests` calls go out.
    With `adaptive` the limit also follows what the server says (X-RateLimit-*, Retry-After).
    """

    max_requests: int = 100
    time_window: float = 60.0
    adaptive: bool = False

    def __post_init__(self) -> None:
        _number("max_requests", self.max_requests, 1, integer=True)
        _number("time_window", self.time_window, 0, above=True)
        _flag("adaptive", self.adaptive)


class CircuitBreakerConfig(_Config, frozen=True, kw_only=True):
    """Opens after `failure_threshold` failures in a row; probes again after `recovery_time` seconds."""

    failure_threshold: int = 5
    recovery_time: float = 30.0

    def __post_init__(self) -> None:
        _number("failure_threshold", self.failure_threshold, 1, integer=True)
        _number("recovery_time", self.recovery_time, 0, above=True)


class CacheConfig(_Config, frozen=True, kw_only=True):
    """Keeps answers of calls without side effects for `ttl` seconds, at most `max_entries` of them."""

    ttl: float = 30.0
    max_entries: int = 1024

    def __post_init__(self) -> None:
        _number("ttl", self.ttl, 0, above=True)
        _number("max_entries", self.max_entries, 1, integer=True)


class ConnectionPoolConfig(_Config, frozen=True, kw_only=True):
    """Connections of a network transport: how many, how many idle ones, and for how many seconds.

    Over gRPC many calls share a connection: `grpc_channels` is how many there are, and the others
    do not count.
    """

    max_connections: int = 100
    max_keepalive_connections: int = 20
    keepalive_expiry: float = 5.0
    grpc_channels: int = 1

    def __post_init__(self) -> None:
        _number("max_connections", self.max_connections, 1, integer=True)
        _number("max_keepalive_connections", self.max_keepalive_connections, 0, integer=True)
        _number("keepalive_expiry", self.keepalive_expiry, 0)
        _number("grpc_channels", self.grpc_channels, 1, integer=True)


class LoggingConfig(_Config, frozen=True, kw_only=True):
    """One line per call on the standard logger `logger_name`.

    `level` is that of a call that succeeds; failures log at WARNING or above. `format` is "text"
    or "json".
    """

    enabled: bool = False
    level: str = "INFO"
    logger_name: str = "llm_cost_ops"
    format: str = "text"

    def __post_init__(self) -> None:
        _flag("enabled", self.enabled)
        _text("level", self.level, ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))
        _text("logger_name", self.logger_name)
        _text("format", self.format, ("text", "json"))


class MetricsConfig(_Config, frozen=True, kw_only=True):
    """Calls, durations, attempts, waits and the breaker's state, for Prometheus or OpenTelemetry
    (extra `[metrics]`), or for `exporters` of your own: objects with `observe(CallObservation)`.
    """

    enabled: bool = False
    prometheus_enabled: bool = False
    opentelemetry_enabled: bool = False
    service_name: str = "llm-cost-ops"
    exporters: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        _flag("enabled", self.enabled)
        _flag("prometheus_enabled", self.prometheus_enabled)
        _flag("opentelemetry_enabled", self.opentelemetry_enabled)
        _text("service_name", self.service_name)
        exporters = self.exporters
        if not isinstance(exporters, list | tuple) or not all(hasattr(e, "observe") for e in exporters):
            raise _wrong("exporters", "must be a list of objects with an observe method", exporters)
        msgspec.structs.force_setattr(self, "exporters", tuple(exporters))


class TLSConfig(_Config, frozen=True, kw_only=True):
    """Paths of PEM files: the authorities to trust instead of the system's, and a client certificate."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def __post_init__(self) -> None:
        for parameter in ("ca_file", "cert_file", "key_file"):
            value = getattr(self, parameter)
            if value is not None and not Path(value).is_file():
                raise _wrong(parameter, "must be the path of a file", value)
        if self.key_file is not None and self.cert_file is None:
            raise ConfigurationError("key_file needs cert_file", parameter="key_file")


_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


class ClientConfig(_Config, frozen=True, kw_only=True):
    """All that a client needs to know.

    `base_url` chooses the transport: `sqlite:///costs.db` and `sqlite://` (in memory) run the
    engine in the process, `http(s)://host` and `grpc(s)://host:port` talk to a server. `timeout`
    is seconds for a whole call, retries and waits included; None means no deadline. `durability`
    belongs to the embedded engine: "disk" survives a power cut, "process" survives a crash of the
    process and is faster. `api_key` may be a callable that returns the key.
    """

    api_key: str | Callable[[], Any] | None = None
    base_url: str = DEFAULT_BASE_URL
    timeout: float | None = 30.0
    retry: RetryConfig = RetryConfig()
    connection_pool: ConnectionPoolConfig = ConnectionPoolConfig()
    rate_limit: RateLimitConfig | None = None
    circuit_breaker: CircuitBreakerConfig | None = None
    cache: CacheConfig | None = None
    logging: LoggingConfig = LoggingConfig()
    metrics: MetricsConfig = MetricsConfig()
    user_agent: str | None = None
    verify_ssl: bool = True
    tls: TLSConfig | None = None
    proxy: str | None = None
    default_headers: Mapping[str, str] = {}
    durability: str = "disk"

    def __post_init__(self) -> None:
        self._check_key()
        split_base_url(self.base_url)
        if self.timeout is not None:
            _number("timeout", self.timeout, 0)
        for parameter, kind in _PARTS.items():
            value = getattr(self, parameter)
            if not isinstance(value, kind) and not (value is None and parameter in _OPTIONAL_PARTS):
                raise _wrong(parameter, f"must be a {kind.__name__}", value)
        _flag("verify_ssl", self.verify_ssl)
        _text("durability", self.durability, ("disk", "process"))
        for parameter in ("user_agent", "proxy"):
            value = getattr(self, parameter)
            if value is not None and not (isinstance(value, str) and _HEADER_VALUE.fullmatch(value)):
                raise _wrong(parameter, "must be one line of printable ASCII", value)
        for name, value in dict(self.default_headers).items():
            if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
                raise ConfigurationError(
                    f"default_headers[{name!r}] must be one line of printable ASCII",
                    parameter="default_headers",
                )

    def _check_key(self) -> None:
        key = self.api_key
        if key is None or callable(key):
            return
        if not isinstance(key, str) or not _HEADER_VALUE.fullmatch(key):
            # The value is a secret, so the message does not show it.
            raise ConfigurationError(
                "api_key must be one line of printable ASCII without spaces around it", parameter="api_key"
            )

    @classmethod
    def from_env(cls, **explicit: Any) -> ClientConfig:
        """Read LLM_COST_OPS_* variables; explicit arguments win over them.

        BASE_URL, API_KEY, TIMEOUT (seconds), MAX_RETRIES, VERIFY_SSL (true or false), PROXY,
        LOG_LEVEL (turns logging on) and DURABILITY are read, each after the prefix.
        """
        found: dict[str, Any] = {}
        for name, (parameter, read) in _ENVIRONMENT.items():
            text = os.environ.get(name)
            if text and parameter not in explicit:
                try:
                    found[parameter] = read(text)
                except (ValueError, KeyError) as error:
                    if isinstance(error, ConfigurationError):
                        raise
                    raise _wrong(name, "can't be read", text) from None
        return cls(**found, **explicit)

    @property
    def headers(self) -> dict[str, str]:
        """What every call carries beside its message, without the credentials."""
        return dict(self.default_headers)

    def with_api_key(self, api_key: str | Callable[[], Any] | None) -> ClientConfig:
        """A copy with this key."""
        return self.replace(api_key=api_key)

    def with_base_url(self, base_url: str) -> ClientConfig:
        """A copy for this service."""
        return self.replace(base_url=base_url)

    def with_timeout(self, seconds: float | None) -> ClientConfig:
        """A copy with this deadline per call."""
        return self.replace(timeout=seconds)

    def with_retry(self, retry: RetryConfig | None = None, **changes: Any) -> ClientConfig:
        """A copy that retries so: a whole RetryConfig, or some of its parameters."""
        return self.replace(retry=_changed(retry, self.retry, changes))

    def with_rate_limit(self, rate_limit: RateLimitConfig | None = None, **changes: Any) -> ClientConfig:
        """A copy with this limit; without arguments, with the default one."""
        return self.replace(rate_limit=_changed(rate_limit, self.rate_limit or RateLimitConfig(), changes))

    def with_connection_pool(
        self, connection_pool: ConnectionPoolConfig | None = None, **changes: Any
    ) -> ClientConfig:
        """A copy with this pool."""
        return self.replace(connection_pool=_changed(connection_pool, self.connection_pool, changes))

    def with_logging(self, logging: LoggingConfig | None = None, **changes: Any) -> ClientConfig:
        """A copy that logs so; without arguments, with logging on."""
        return self.replace(logging=_changed(logging, self.logging, {"enabled": True, **changes}))

    def with_metrics(self, metrics: MetricsConfig | None = None, **changes: Any) -> ClientConfig:
        """A copy that measures so; without arguments, with metrics on."""
        return self.replace(metrics=_changed(metrics, self.metrics, {"enabled": True, **changes}))

    def __repr__(self) -> str:
        shown = []
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name == "api_key":
                value = None if value is None else "***"
            elif name == "proxy" and value:
                value = re.sub(r"//[^@/]*@", "//***@", value)
            elif name == "default_headers":
                value = dict.fromkeys(value, "***")
            shown.append(f"{name}={value!r}")
        return f"ClientConfig({', '.join(shown)})"

    __str__ = __repr__

    def __rich_repr__(self) -> Any:
        yield repr(self)


def _changed(whole: C | None, current: C, changes: dict[str, Any]) -> C:
    return whole if whole is not None else current.replace(**changes)


_PARTS: dict[str, type] = {
    "retry": RetryConfig,
    "connection_pool": ConnectionPoolConfig,
    "rate_limit": RateLimitConfig,
    "circuit_breaker": CircuitBreakerConfig,
    "cache": CacheConfig,
    "logging": LoggingConfig,
    "metrics": MetricsConfig,
    "tls": TLSConfig,
    "default_headers": Mapping,
}
_OPTIONAL_PARTS = {"rate_limit", "circuit_breaker", "cache", "tls"}
_BOOLEAN = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}

_ENVIRONMENT: dict[str, tuple[str, Callable[[str], Any]]] = {
    "LLM_COST_OPS_API_KEY": ("api_key", str.strip),
    "LLM_COST_OPS_BASE_URL": ("base_url", str.strip),
    "LLM_COST_OPS_TIMEOUT": ("timeout", float),
    "LLM_COST_OPS_MAX_RETRIES": ("retry", lambda text: RetryConfig(max_retries=int(text))),
    "LLM_COST_OPS_VERIFY_SSL": ("verify_ssl", lambda text: _BOOLEAN[text.strip().lower()]),
    "LLM_COST_OPS_PROXY": ("proxy", str.strip),
    "LLM_COST_OPS_LOG_LEVEL": (
        "logging",
        lambda text: LoggingConfig(enabled=True, level=text.strip().upper()),
    ),
    "LLM_COST_OPS_DURABILITY": ("durability", str.strip),
}


def split_base_url(base_url: Any) -> SplitResult:
    """The parts of a base URL, or ConfigurationError saying what is wrong with it."""
    rule = (
        "must be a URL such as sqlite:///costs.db, sqlite://, https://costs.example.com "
        "or grpcs://costs.example.com:443"
    )
    if not isinstance(base_url, str) or not re.fullmatch(r"[\x21-\x7e\u00a0-\uffff]+", base_url):
        raise _wrong("base_url", rule, base_url)
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError:
        raise _wrong("base_url", rule, base_url) from None
    if parts.scheme not in SCHEMES or parts.fragment:
        raise _wrong("base_url", rule, base_url)
    if parts.username or parts.password:
        raise ConfigurationError("base_url must not hold a password: use api_key", parameter="base_url")
    if parts.scheme == "sqlite":
        if parts.netloc:
            raise _wrong("base_url", "of the embedded engine has three slashes before the path", base_url)
    elif parts.query or not (parts.hostname or parts.path):
        raise _wrong("base_url", rule, base_url)
    return parts
