"""How a client is set up. Configurations are immutable and checked when they are made.

Every wrong value raises ConfigurationError that names the parameter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from llm_cost_ops.config.parts import (
    BatchingConfig,
    CacheConfig,
    CircuitBreakerConfig,
    Config,
    ConnectionPoolConfig,
    LoggingConfig,
    MetricsConfig,
    RateLimitConfig,
    RecorderConfig,
    RetryConfig,
    TLSConfig,
    flag,
    number,
    text,
    wrong,
)
from llm_cost_ops.exceptions import ConfigurationError

__all__ = [
    "BatchingConfig",
    "CacheConfig",
    "CircuitBreakerConfig",
    "ClientConfig",
    "ConnectionPoolConfig",
    "LoggingConfig",
    "MetricsConfig",
    "RateLimitConfig",
    "RecorderConfig",
    "RetryConfig",
    "TLSConfig",
]

REPORTED_PROVIDERS = ("openrouter",)
"""Gateways that charge the cost that their responses state."""

DEFAULT_BASE_URL = "sqlite:///llm_cost_ops.db"
EMBEDDED = ("postgres", "postgresql", "sqlite")
"""The schemes of a database that the client opens itself."""

SCHEMES = ("http", "https", "grpc", "grpcs", *EMBEDDED)

ApiKey = str | Callable[[], str | Awaitable[str]]
"""A key, or what gives the key to use now."""

C = TypeVar("C", bound=Config)


_SECRET_HEADER = re.compile(r"auth|cookie|key|token|secret|password|credential", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[0-9A-Za-z_.-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


class ClientConfig(Config, frozen=True, kw_only=True):
    """All that a client needs to know.

    `base_url` chooses the transport: `sqlite:///costs.db` and `sqlite://` (in memory) run the
    engine in the process, `http(s)://host` and `grpc(s)://host:port` talk to a server, and
    `http://a:8080,b:8080` (or https, grpc, grpcs) to several that share a ledger. `timeout`
    is seconds for a whole call, retries and waits included; None means no deadline. `durability`
    belongs to the embedded engine: "disk" survives a power cut, "process" survives a crash of the
    process and is faster. `unknown_fields` says what becomes of a field that a record or a price does
    not have: "refuse" (it may be a misspelt count) or "keep", for a service that is newer than this
    client; gRPC, whose messages have no names, refuses it always. `reported_providers` belongs to the
    embedded engine as well: for these providers the cost that a response states is taken as it is, before any
    price card. `api_key` may be a callable that returns the key. `recording_proxy` is the URL of a proxy of
    ours (`llm-cost-ops proxy`) that instrumented SDK clients call: it is told whose a call is, and its key.
    """

    api_key: ApiKey | None = None
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
    recording_proxy: str | None = None
    default_headers: Mapping[str, str] = {}
    durability: str = "disk"
    batching: BatchingConfig = BatchingConfig()
    recorder: RecorderConfig = RecorderConfig()
    organization_id: str = ""
    project_id: str = ""
    labels: Mapping[str, str] = {}
    unknown_fields: str = "refuse"
    reported_providers: Sequence[str] = REPORTED_PROVIDERS

    def __post_init__(self) -> None:
        self._check_key()
        split_base_url(self.base_url)
        if self.timeout is not None:
            number("timeout", self.timeout, 0)
        for parameter, kind in _PARTS.items():
            value = getattr(self, parameter)
            if not isinstance(value, kind) and not (value is None and parameter in _OPTIONAL_PARTS):
                raise wrong(parameter, f"must be a {kind.__name__}", value)
        flag("verify_ssl", self.verify_ssl)
        text("durability", self.durability, ("disk", "process", "replicated"))
        text("organization_id", self.organization_id)
        text("project_id", self.project_id)
        labels = dict(self.labels)
        if not all(isinstance(name, str) and isinstance(value, str) for name, value in labels.items()):
            raise wrong("labels", "must be texts by names", self.labels)
        msgspec.structs.force_setattr(self, "labels", labels)
        text("unknown_fields", self.unknown_fields, ("refuse", "keep"))
        if self.recording_proxy is not None:
            _check_recording_proxy(self.recording_proxy)
        for parameter in ("user_agent", "proxy"):
            value = getattr(self, parameter)
            if value is not None and not (isinstance(value, str) and _HEADER_VALUE.fullmatch(value)):
                # The value may hold a password, so the message does not show it.
                raise ConfigurationError(
                    f"{parameter} must be one line of printable ASCII", parameter=parameter
                )
        reported = provider_names("reported_providers", self.reported_providers)
        msgspec.structs.force_setattr(self, "reported_providers", reported)
        self._check_headers()

    def _check_headers(self) -> None:
        headers = dict(self.default_headers)
        for name, value in headers.items():
            if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
                raise wrong("default_headers", "must have names of letters, digits, '_', '-' and '.'", name)
            if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
                raise ConfigurationError(
                    f"default_headers[{name!r}] must be one line of printable ASCII",
                    parameter="default_headers",
                )
        # A copy, so that the caller's mapping can change.
        msgspec.structs.force_setattr(self, "default_headers", headers)

    def _check_key(self) -> None:
        key: object = self.api_key
        if key is None or callable(key):
            return
        if isinstance(key, str) and "://" in key:
            # The first argument of a client is its key: a URL there would leave the calls to another place.
            raise ConfigurationError(
                "api_key is a URL: give that as base_url, and the key as api_key", parameter="api_key"
            )
        if isinstance(key, ClientConfig):
            raise ConfigurationError(
                "api_key is a ClientConfig: give that as config, and the key as api_key", parameter="api_key"
            )
        if not isinstance(key, str) or not _HEADER_VALUE.fullmatch(key):
            # The value is a secret, so the message does not show it.
            raise ConfigurationError(
                "api_key must be one line of printable ASCII without spaces around it", parameter="api_key"
            )

    @classmethod
    def from_env(cls, **explicit: object) -> ClientConfig:
        """Read LLM_COST_OPS_* variables; explicit arguments win over them.

        BASE_URL, API_KEY, TIMEOUT (seconds), MAX_RETRIES, VERIFY_SSL (true or false), PROXY,
        RECORDING_PROXY, LOG_LEVEL (turns logging on), DURABILITY, SPOOL (a folder), ORGANIZATION_ID,
        PROJECT_ID and REPORTED_PROVIDERS (names with commas between them) are read, each after the prefix.
        """
        found: dict[str, Any] = {}
        for name, (parameter, read) in _ENVIRONMENT.items():
            found_text = os.environ.get(name)
            if found_text and parameter not in explicit:
                try:
                    found[parameter] = read(found_text)
                except (ValueError, KeyError) as error:
                    if isinstance(error, ConfigurationError):
                        raise
                    raise wrong(name, _READABLE[parameter], found_text) from None
        found.update(explicit)
        return cls(**found)

    @property
    def headers(self) -> dict[str, str]:
        """What every call carries beside its message, without the credentials."""
        return dict(self.default_headers)

    def with_api_key(self, api_key: ApiKey | None) -> ClientConfig:
        """A copy with this key."""
        return self.replace(api_key=api_key)

    def with_base_url(self, base_url: str) -> ClientConfig:
        """A copy for this service."""
        return self.replace(base_url=base_url)

    def with_timeout(self, seconds: float | None) -> ClientConfig:
        """A copy with this deadline per call."""
        return self.replace(timeout=seconds)

    def with_retry(self, retry: RetryConfig | None = None, **changes: object) -> ClientConfig:
        """A copy with these retries: a whole RetryConfig, or some of its parameters."""
        return self.replace(retry=_changed(retry, self.retry, changes))

    def with_rate_limit(self, rate_limit: RateLimitConfig | None = None, **changes: object) -> ClientConfig:
        """A copy with this limit; without arguments, with the default one."""
        return self.replace(rate_limit=_changed(rate_limit, self.rate_limit or RateLimitConfig(), changes))

    def with_circuit_breaker(
        self, circuit_breaker: CircuitBreakerConfig | None = None, **changes: object
    ) -> ClientConfig:
        """A copy with this breaker; without arguments, with the default one."""
        current = self.circuit_breaker or CircuitBreakerConfig()
        return self.replace(circuit_breaker=_changed(circuit_breaker, current, changes))

    def with_cache(self, cache: CacheConfig | None = None, **changes: object) -> ClientConfig:
        """A copy with this cache; without arguments, with the default one."""
        return self.replace(cache=_changed(cache, self.cache or CacheConfig(), changes))

    def with_headers(self, headers: Mapping[str, str]) -> ClientConfig:
        """A copy that sends these headers beside those that it has."""
        return self.replace(default_headers={**self.default_headers, **headers})

    def with_user_agent(self, user_agent: str | None) -> ClientConfig:
        """A copy with this user agent."""
        return self.replace(user_agent=user_agent)

    def with_connection_pool(
        self, connection_pool: ConnectionPoolConfig | None = None, **changes: object
    ) -> ClientConfig:
        """A copy with this pool."""
        return self.replace(connection_pool=_changed(connection_pool, self.connection_pool, changes))

    def with_logging(self, logging: LoggingConfig | None = None, **changes: object) -> ClientConfig:
        """A copy with this logging; without arguments, with logging on."""
        return self.replace(logging=_changed(logging, self.logging, {"enabled": True, **changes}))

    def with_metrics(self, metrics: MetricsConfig | None = None, **changes: object) -> ClientConfig:
        """A copy with these metrics; without arguments, with metrics on."""
        return self.replace(metrics=_changed(metrics, self.metrics, {"enabled": True, **changes}))

    def with_batching(self, batching: BatchingConfig | None = None, **changes: object) -> ClientConfig:
        """A copy with this batching of submits: a whole BatchingConfig, or some of its parameters."""
        return self.replace(batching=_changed(batching, self.batching, changes))

    def with_recorder(self, recorder: RecorderConfig | None = None, **changes: object) -> ClientConfig:
        """A copy with this recorder for `usage.record`: a whole RecorderConfig, or some of its parameters."""
        return self.replace(recorder=_changed(recorder, self.recorder, changes))

    def __repr__(self) -> str:
        shown = []
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name == "api_key":
                value = None if value is None else "***"
            elif name == "proxy" and value:
                value = re.sub(r"^(\w+://)?.*@", r"\1***@", value)
            elif name == "base_url":
                value = without_password(value)
            elif name == "default_headers":
                value = dict.fromkeys(value, "***")
            shown.append(f"{name}={value!r}")
        return f"ClientConfig({', '.join(shown)})"

    __str__ = __repr__

    def __reduce__(self) -> Any:
        secret = self._secret()
        if secret:
            raise TypeError(
                f"a ClientConfig with {secret} is not pickled, since the bytes would hold the secret: set "
                "LLM_COST_OPS_API_KEY in the other process, or give api_key as a function that returns it"
            )
        return _restored, ({name: getattr(self, name) for name in self.__struct_fields__},)

    def __copy__(self) -> ClientConfig:
        return self

    def __deepcopy__(self, memo: object) -> ClientConfig:
        return self

    def _secret(self) -> str:
        """The name of the parameter that holds a secret, "" when none does."""
        if isinstance(self.api_key, str):
            return "api_key"
        if without_password(self.base_url) != self.base_url:
            return "base_url (its password)"
        if self.proxy is not None and "@" in self.proxy:
            return "proxy (its password)"
        names = (name for name in self.default_headers if _SECRET_HEADER.search(name))
        return next((f"default_headers[{name!r}]" for name in names), "")

    def __rich_repr__(self) -> Any:
        yield repr(self)


def _restored(fields: dict[str, Any]) -> ClientConfig:
    return ClientConfig(**fields)


def _changed(whole: C | None, current: C, changes: dict[str, object]) -> C:
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
    "batching": BatchingConfig,
    "recorder": RecorderConfig,
    "labels": Mapping,
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


def split_names(value: str) -> tuple[str, ...]:
    """The names in a text with commas between them; none in an empty one."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


_ENVIRONMENT: dict[str, tuple[str, Callable[[str], Any]]] = {
    "LLM_COST_OPS_API_KEY": ("api_key", str.strip),
    "LLM_COST_OPS_BASE_URL": ("base_url", str.strip),
    "LLM_COST_OPS_TIMEOUT": ("timeout", float),
    "LLM_COST_OPS_MAX_RETRIES": ("retry", lambda value: RetryConfig(max_retries=int(value))),
    "LLM_COST_OPS_VERIFY_SSL": ("verify_ssl", lambda value: _BOOLEAN[value.strip().lower()]),
    "LLM_COST_OPS_PROXY": ("proxy", str.strip),
    "LLM_COST_OPS_RECORDING_PROXY": ("recording_proxy", str.strip),
    "LLM_COST_OPS_LOG_LEVEL": (
        "logging",
        lambda value: LoggingConfig(enabled=True, level=value.strip()),
    ),
    "LLM_COST_OPS_DURABILITY": ("durability", str.strip),
    "LLM_COST_OPS_SPOOL": ("recorder", lambda value: RecorderConfig(spool=value.strip())),
    "LLM_COST_OPS_ORGANIZATION_ID": ("organization_id", str.strip),
    "LLM_COST_OPS_PROJECT_ID": ("project_id", str.strip),
    "LLM_COST_OPS_REPORTED_PROVIDERS": ("reported_providers", split_names),
}
_READABLE = {
    "timeout": "must be a number of seconds",
    "retry": "must be a whole number of retries",
    "verify_ssl": "must be true or false",
}


def provider_names(parameter: str, value: object) -> tuple[str, ...]:
    """A tuple of what should be names of providers, or ConfigurationError."""
    names = None if isinstance(value, str | bytes) or not isinstance(value, Iterable) else tuple(value)
    if names is None or not all(isinstance(name, str) and name.strip() for name in names):
        raise wrong(parameter, "must be a list of names of providers", value)
    return names


def _check_recording_proxy(url: object) -> None:
    rule = "must be the URL of a proxy such as http://127.0.0.1:8090"
    try:
        parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        known = False
    if not known or "@" in str(url):
        raise ConfigurationError(f"recording_proxy {rule}", parameter="recording_proxy")


def split_base_url(base_url: object) -> SplitResult:
    """The parts of a base URL, or ConfigurationError saying what is wrong with it."""
    rule = (
        "must be a URL such as sqlite:///costs.db, sqlite://, postgresql://user@host/costs, "
        "https://costs.example.com, grpcs://costs.example.com:443 or, for several servers, http://a:8080,b:8080"
    )
    shown = _refused(base_url) if isinstance(base_url, str) else base_url
    if not isinstance(base_url, str) or not _BASE_URL.fullmatch(base_url):
        raise wrong("base_url", rule, shown)
    several = base_urls(base_url)
    if _SCHEME_AGAIN.match(base_url):
        raise wrong("base_url", "has one scheme and one path for all servers: http://a:1,b:2/path", shown)
    if len(several) > 1:
        return _split_servers(several, shown)
    try:
        parts = urlsplit(base_url)
        if parts.scheme in ("postgres", "postgresql") and not parts.fragment:
            # Its driver reads it: it may have several hosts, and none.
            return parts
        _ = parts.port
    except ValueError:
        raise wrong("base_url", rule, shown) from None
    if parts.scheme not in SCHEMES or parts.fragment:
        raise wrong("base_url", rule, shown)
    if parts.username or parts.password:
        raise ConfigurationError("base_url must not hold a password: use api_key", parameter="base_url")
    if parts.scheme == "sqlite":
        if parts.netloc:
            raise wrong("base_url", "of the embedded engine has three slashes before the path", shown)
    elif parts.query or not (parts.hostname or (parts.scheme == "grpc" and parts.path)):
        raise wrong("base_url", rule, shown)
    return parts


# Without the slashes the rest would be a path: that of a file, or of a Unix socket.
# By the characters that may not be in it: re takes 2 ms to compile the others, 4 % of importing a client.
_BASE_URL = re.compile(r"[A-Za-z]+://[^\x00-\x20\x7f-\x9f\U00010000-\U0010ffff]*")
_SCHEME_AGAIN = re.compile(r"(https?|grpcs?)://.*,[a-z]+://", re.IGNORECASE)
_SEVERAL = re.compile(r"(https?|grpcs?)(://)([^/?#]*,[^/?#]*)(.*)", re.IGNORECASE)


def base_urls(base_url: str) -> tuple[str, ...]:
    """The URL of each server that a base URL names: http://a:1,b:2/x is http://a:1/x and http://b:2/x."""
    match = _SEVERAL.fullmatch(base_url)
    if match is None:
        return (base_url,)
    scheme, slashes, servers, path = match.groups()
    return tuple(f"{scheme}{slashes}{server}{path}" for server in servers.split(","))


def _split_servers(urls: Sequence[str], shown: object) -> SplitResult:
    """The parts of the first of several URLs; ConfigurationError when one is wrong or given twice."""
    known: set[tuple[str | None, int | None]] = set()
    for url in urls:
        if re.match(r"[a-z]+://(:|/|$)", url, re.IGNORECASE):
            raise wrong("base_url", "must name a host in each place of its list of servers", shown)
        parts = split_base_url(url)
        if (parts.hostname, parts.port) in known:
            raise wrong("base_url", f"names the server {parts.netloc} twice", shown)
        known.add((parts.hostname, parts.port))
    if len({port is None for _, port in known}) > 1:
        raise wrong("base_url", "must name the port of each of its servers, or of none", shown)
    return split_base_url(urls[0])


def without_password(url: str) -> str:
    """The URL of a database as it may be shown: with *** for a password, also one that is not encoded."""
    scheme = url.partition(":")[0].lower()
    if scheme == "sqlite" or not (scheme in SCHEMES or re.match(r"[a-z][a-z0-9+.-]*:/", url, re.IGNORECASE)):
        return url
    # The path of a server may have an @ of its own.
    password = "[^/?#]*" if scheme in SCHEMES and scheme not in EMBEDDED else ".*"
    url = re.sub(rf"(:/*[^/?#:]*:){password}@", r"\1***@", url)
    return _PARAMETER.sub(_without_value, url)


_PARAMETER = re.compile(r"([?&])([^?&=]*)=[^&]*")


def _without_value(parameter: re.Match[str]) -> str:
    # Names may be encoded, as values may.
    if "password" not in unquote(parameter[2]).lower():
        return parameter[0]
    return f"{parameter[1]}{parameter[2]}=***"


def _refused(base_url: str) -> str:
    """The text to show for a wrong base URL: whatever stands before its last @ may be a password."""
    if base_url.lower().startswith("sqlite:"):
        return base_url
    shown = re.sub(r"^([^/?#:@]*:/+|/+)?([^/?#:@]*:)?.*@", r"\1\2***@", base_url, flags=re.DOTALL)
    return _PARAMETER.sub(_without_value, shown)
