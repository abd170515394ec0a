from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_cost_ops import (
    BatchingConfig,
    CacheConfig,
    CircuitBreakerConfig,
    ClientConfig,
    ConfigurationError,
    ConnectionPoolConfig,
    CostOpsClient,
    LoggingConfig,
    MetricsConfig,
    RateLimitConfig,
    RecorderConfig,
    RetryConfig,
    TLSConfig,
)
from llm_cost_ops.config import _ENVIRONMENT

NAN, INF = float("nan"), float("inf")
NUMBERS = ["1", None, NAN, INF, -1, True, [], 1j]


def key_from_elsewhere() -> str:
    return "k"


WHOLE = [*NUMBERS, 1.5]
FLAGS = [0, 1, "true", None]
WRONG: list[tuple[type, str, list[Any]]] = [
    (RetryConfig, "max_retries", WHOLE),
    (RetryConfig, "initial_backoff", NUMBERS),
    (RetryConfig, "backoff_factor", [*NUMBERS, 0.99]),
    (RetryConfig, "max_backoff", NUMBERS),
    (RetryConfig, "jitter", FLAGS),
    (RetryConfig, "retry_on_network_error", FLAGS),
    (RetryConfig, "retry_on_status", [5, {"503"}, {200}, {399}, {600}, {True}, "503", None]),
    (RetryConfig, "budget", NUMBERS),
    (RetryConfig, "budget_refill", NUMBERS),
    (RateLimitConfig, "max_requests", [*WHOLE, 0]),
    (RateLimitConfig, "time_window", [*NUMBERS, 0]),
    (RateLimitConfig, "adaptive", FLAGS),
    (CircuitBreakerConfig, "failure_threshold", [*WHOLE, 0]),
    (CircuitBreakerConfig, "recovery_time", [*NUMBERS, 0]),
    (CacheConfig, "ttl", [*NUMBERS, 0]),
    (CacheConfig, "max_entries", [*WHOLE, 0]),
    (ConnectionPoolConfig, "max_connections", [*WHOLE, 0]),
    (ConnectionPoolConfig, "max_keepalive_connections", [v for v in WHOLE if v is not None]),
    (ConnectionPoolConfig, "keepalive_expiry", NUMBERS),
    (ConnectionPoolConfig, "grpc_channels", [*WHOLE, 0]),
    (ConnectionPoolConfig, "max_in_flight", [*WHOLE, 0]),
    (LoggingConfig, "enabled", FLAGS),
    (LoggingConfig, "level", ["", "LOUD", 10, None]),
    (LoggingConfig, "logger_name", [None, 5]),
    (LoggingConfig, "format", ["xml", None]),
    (MetricsConfig, "enabled", FLAGS),
    (MetricsConfig, "prometheus_enabled", FLAGS),
    (MetricsConfig, "opentelemetry_enabled", FLAGS),
    (MetricsConfig, "service_name", [None, 5]),
    (MetricsConfig, "exporters", [None, 5, "x", [object()]]),
    (TLSConfig, "ca_file", ["/no/such/file", 5]),
    (TLSConfig, "cert_file", ["/no/such/file", b"x"]),
    (TLSConfig, "key_file", ["/no/such/file"]),
    (ClientConfig, "api_key", ["", " key", "key\n", "kéy", 5, b"key"]),
    (ClientConfig, "timeout", ["1", NAN, INF, -1, True, []]),
    (ClientConfig, "retry", [None, 3, {}]),
    (ClientConfig, "connection_pool", [None, 3]),
    (ClientConfig, "rate_limit", [3, RetryConfig()]),
    (ClientConfig, "circuit_breaker", [3, True]),
    (ClientConfig, "cache", [3, True]),
    (ClientConfig, "logging", [None, True]),
    (ClientConfig, "metrics", [None, True]),
    (ClientConfig, "tls", [True, "file"]),
    (ClientConfig, "verify_ssl", FLAGS),
    (ClientConfig, "durability", ["none", None, 1]),
    (ClientConfig, "recorder", [None, "spool"]),
    (ClientConfig, "batching", [None, True]),
    (BatchingConfig, "enabled", FLAGS),
    (BatchingConfig, "max_records", [*WHOLE, 0, 10_001]),
    (BatchingConfig, "max_bytes", [*WHOLE, 0]),
    (BatchingConfig, "max_in_flight", [*WHOLE, 0]),
    (ClientConfig, "organization_id", [None, 5]),
    (ClientConfig, "project_id", [None, 5]),
    (ClientConfig, "labels", [None, {"a": 5}, {5: "a"}]),
    (RecorderConfig, "max_records", [*WHOLE, 0]),
    (RecorderConfig, "max_bytes", [*WHOLE, 0]),
    (RecorderConfig, "spool_bytes", [*WHOLE, 0]),
    (RecorderConfig, "overflow", ["wait", None, "spill"]),
    (RecorderConfig, "spool", [5, ""]),
    (RecorderConfig, "durability", ["none", None]),
    (RecorderConfig, "shutdown_timeout", NUMBERS),
    (RecorderConfig, "on_result", [5]),
    (RecorderConfig, "on_error", ["x"]),
    (ClientConfig, "unknown_fields", ["drop", None, True]),
    (ClientConfig, "reported_providers", ["openrouter", None, 1, [""], [1]]),
    (ClientConfig, "user_agent", ["", "a\r\nb", 5, "ü"]),
    (ClientConfig, "proxy", ["", "a b\n", 5]),
    (ClientConfig, "recording_proxy", ["", "proxy:8090", "ftp://proxy", "http://", "http://a:b@proxy", 5]),
    (ClientConfig, "default_headers", [None, 5, {"a": 1}, {"a": "b\r\nc: d"}, {"a b": "c"}, {1: "a"}, [1]]),
    (
        ClientConfig,
        "base_url",
        [
            "",
            None,
            5,
            "localhost",
            "ftp://host",
            "https://",
            "https://host:port",
            "https://host:99999",
            "https://user:secret@host",
            "https://host/#part",
            "https://host?x=1",
            "sqlite://costs.db",
            "sqlite:costs.db",
            "sqlite:/costs.db",
            "sqlite:",
            "postgresql:costs",
            "http:/host",
            "http:///path",
            "grpcs:///path",
            "grpc:host:50051",
            "https://ho st",
            "https://host\n",
            "https://[::1",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "parameter", "value"),
    [
        pytest.param(kind, parameter, value, id=f"{kind.__name__}.{parameter}-{number}")
        for kind, parameter, values in WRONG
        for number, value in enumerate(values)
    ],
)
def test_a_wrong_value_names_its_parameter(kind: Any, parameter: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kind(**{parameter: value})
    assert caught.value.parameter == parameter
    assert parameter in str(caught.value)


def test_an_empty_text_is_not_among_the_values_that_are_named() -> None:
    with pytest.raises(ConfigurationError, match="overflow must be one of block, drop_newest,"):
        RecorderConfig(overflow="drop")


def test_every_parameter_has_wrong_values() -> None:
    kinds = {kind for kind, _, _ in WRONG}
    fields = {(kind, name) for kind in kinds for name in kind.__struct_fields__}
    assert fields - {(kind, name) for kind, name, _ in WRONG} == set()


def test_documented_defaults() -> None:
    config = ClientConfig()
    assert (config.timeout, config.verify_ssl, config.rate_limit, config.cache) == (30.0, True, None, None)
    retry = config.retry
    assert (retry.max_retries, retry.backoff_factor, retry.max_backoff, retry.initial_backoff) == (
        3,
        2,
        60,
        0.5,
    )
    assert RateLimitConfig() == RateLimitConfig(max_requests=100, time_window=60.0)
    pool = config.connection_pool
    assert (pool.max_connections, pool.keepalive_connections, pool.keepalive_expiry) == (100, 20, 5.0)


def test_zero_is_zero_and_not_the_default() -> None:
    assert ClientConfig(timeout=0).timeout == 0
    assert RetryConfig(max_retries=0, initial_backoff=0, max_backoff=0, budget=0).max_retries == 0
    assert ClientConfig(timeout=None).timeout is None


def test_configurations_are_immutable_and_values() -> None:
    config: Any = ClientConfig(base_url="https://a")
    with pytest.raises(AttributeError):
        config.timeout = 5
    assert config.replace() == config
    assert config.replace(timeout=1) != config
    assert config.timeout == 30
    with pytest.raises(ConfigurationError, match="tiemout") as caught:
        config.replace(tiemout=1)
    assert caught.value.parameter == "tiemout"
    assert RetryConfig().retry_on_status == {408, 429, 500, 502, 503, 504}, "as docs/interceptors.md says"
    assert RetryConfig(retry_on_status=[500, 503]).retry_on_status == frozenset({500, 503})


def test_headers_given_may_change_without_changing_the_configuration() -> None:
    given = {"x-a": "b"}
    config = ClientConfig(default_headers=given)
    given["x-a"] = "changed\r\n"
    assert config.headers == {"x-a": "b"}
    config.headers["x-a"] = "c"
    assert config.headers == {"x-a": "b"}


def test_fluent_setters_copy() -> None:
    start = ClientConfig()
    config = (
        start.with_api_key("key")
        .with_base_url("https://host")
        .with_timeout(5)
        .with_retry(max_retries=7)
        .with_rate_limit(max_requests=5)
        .with_connection_pool(max_connections=9)
        .with_logging(level="DEBUG")
        .with_metrics(service_name="s")
        .with_circuit_breaker(failure_threshold=2)
        .with_cache(ttl=1)
        .with_headers({"x-a": "b"})
        .with_user_agent("agent/1")
    )
    assert start == ClientConfig()
    assert (config.api_key, config.base_url, config.timeout) == ("key", "https://host", 5)
    assert config.retry == RetryConfig(max_retries=7)
    assert config.rate_limit == RateLimitConfig(max_requests=5)
    assert config.connection_pool == ConnectionPoolConfig(max_connections=9)
    assert config.logging == LoggingConfig(enabled=True, level="DEBUG")
    assert config.metrics == MetricsConfig(enabled=True, service_name="s")
    assert config.circuit_breaker == CircuitBreakerConfig(failure_threshold=2)
    assert config.cache == CacheConfig(ttl=1)
    assert config.headers == {"x-a": "b"}
    assert config.user_agent == "agent/1"
    assert start.with_retry(RetryConfig(max_retries=1)).retry.max_retries == 1
    with pytest.raises(ConfigurationError, match="max_retrys"):
        start.with_retry(max_retrys=1)


ENVIRONMENT = {
    "LLM_COST_OPS_API_KEY": ("key ", "api_key", "key"),
    "LLM_COST_OPS_BASE_URL": ("https://host", "base_url", "https://host"),
    "LLM_COST_OPS_TIMEOUT": ("2.5", "timeout", 2.5),
    "LLM_COST_OPS_MAX_RETRIES": ("0", "retry", RetryConfig(max_retries=0)),
    "LLM_COST_OPS_VERIFY_SSL": ("False", "verify_ssl", False),
    "LLM_COST_OPS_PROXY": ("http://proxy:3128", "proxy", "http://proxy:3128"),
    "LLM_COST_OPS_RECORDING_PROXY": ("http://proxy:8090", "recording_proxy", "http://proxy:8090"),
    "LLM_COST_OPS_LOG_LEVEL": ("debug", "logging", LoggingConfig(enabled=True, level="DEBUG")),
    "LLM_COST_OPS_DURABILITY": ("process", "durability", "process"),
    "LLM_COST_OPS_SPOOL": ("spool", "recorder", RecorderConfig(spool="spool")),
    "LLM_COST_OPS_ORGANIZATION_ID": ("acme", "organization_id", "acme"),
    "LLM_COST_OPS_PROJECT_ID": ("search", "project_id", "search"),
    "LLM_COST_OPS_REPORTED_PROVIDERS": ("xai, perplexity", "reported_providers", ("xai", "perplexity")),
}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_each_variable_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, parameter, value = ENVIRONMENT[name]
    monkeypatch.setenv(name, text)
    assert getattr(ClientConfig.from_env(), parameter) == value
    default = getattr(ClientConfig(), parameter)
    assert getattr(ClientConfig.from_env(**{parameter: default}), parameter) == default, "explicit wins"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TIMEOUT", "soon"),
        ("TIMEOUT", "nan"),
        ("TIMEOUT", "-1"),
        ("MAX_RETRIES", "1.5"),
        ("MAX_RETRIES", "-1"),
        ("VERIFY_SSL", "maybe"),
        ("LOG_LEVEL", "LOUD"),
        ("BASE_URL", "nowhere"),
        ("API_KEY", "a\x7fb"),
        ("DURABILITY", "none"),
        ("PROXY", "a\tb"),
    ],
)
def test_a_wrong_variable_is_a_configuration_error(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LLM_COST_OPS_{name}", text)
    with pytest.raises(ConfigurationError, match="must") as caught:
        ClientConfig.from_env()
    assert caught.value.parameter


def test_the_page_of_settings_has_every_parameter_and_variable() -> None:
    assert set(ENVIRONMENT) == set(_ENVIRONMENT), "each is tried above"
    page = (Path(__file__).parents[2] / "docs/configuration.md").read_text(encoding="utf-8")
    names = (*ClientConfig.__struct_fields__, *ENVIRONMENT)
    assert [name for name in names if f"`{name}`" not in page] == []


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")
    assert ClientConfig.from_env() == ClientConfig()


def test_arguments_win_over_config_and_config_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_COST_OPS_BASE_URL", "sqlite:///from-env.db")
    monkeypatch.setenv("LLM_COST_OPS_TIMEOUT", "1")
    assert CostOpsClient().config.base_url == "sqlite:///from-env.db"
    assert CostOpsClient(timeout=0).config.timeout == 0
    config = ClientConfig(base_url="sqlite://", timeout=9)
    assert CostOpsClient(config=config).config == config
    assert CostOpsClient(config=config, base_url="sqlite:///x.db").config.timeout == 9
    with pytest.raises(ConfigurationError, match="config"):
        CostOpsClient(config={})


@pytest.mark.parametrize(
    "proxy", ["u:canary@h:1", "http://u:canary@h:1", "http://u:can/canary@h:1", "socks5://u:can@canary@h:1"]
)
def test_no_password_of_a_proxy_is_shown(proxy: str) -> None:
    shown = repr(ClientConfig(proxy=proxy))
    assert "canary" not in shown
    assert "***@h:1" in shown


@pytest.mark.parametrize(
    "base_url",
    [
        "postgresql:u:canary@h/db",
        "postgres:u:canary@h",
        "https:u:canary@h",
        "u:canary@h/db",
        "canary@h/db",
        "//u:canary@h/db",
        "http://u:se/canary@h",
        "http://a,http://u:canary@h",
        "http://a/x,http://u:canary@h",
        "postgresql://u:se\ncanary@h/db",
        "postgresql://h/db?passWord=canary#y",
        "postgresql://h/db?pass%77ord=canary#y",
        "postgresql://h/db?x=1& password = canary",
    ],
)
def test_no_password_of_a_refused_base_url_is_shown(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^base_url .*\*\*\*") as caught:
        ClientConfig(base_url=base_url)
    assert "canary" not in str(caught.value)


def test_no_secret_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    config = ClientConfig(
        api_key="canary-1", proxy="http://user:canary-2@proxy", default_headers={"x-api-key": "canary-3"}
    )
    shown = f"{config!r}{config}{list(config.__rich_repr__())}{[config]}{CostOpsClient(config=config)!r}"
    assert "canary" not in shown
    assert "max_retries=3" in shown
    for wrong in ({"api_key": "canary key "}, {"proxy": "http://user:canary@proxy\n"}):
        with pytest.raises(ConfigurationError) as caught:
            ClientConfig(**wrong)
        assert "canary" not in str(caught.value)


def test_configurations_travel_to_other_processes() -> None:
    config = ClientConfig(api_key=key_from_elsewhere, cache=CacheConfig(), default_headers={"a": "b"})
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.copy(config) is copy.deepcopy(config) is config
    assert msgspec.structs.asdict(config)["cache"] == CacheConfig()


@pytest.mark.parametrize(
    ("secret", "named"),
    [
        ({"api_key": "canary"}, "api_key"),
        ({"proxy": "http://user:canary@proxy:1"}, "proxy"),
        ({"default_headers": {"x-api-key": "canary"}}, "x-api-key"),
        ({"default_headers": {"Authorization": "canary"}}, "Authorization"),
    ],
)
def test_a_secret_is_in_no_pickle(secret: dict[str, Any], named: str) -> None:
    config = ClientConfig(base_url="sqlite://", **secret)
    for holder in (config, CostOpsClient(config=config)):
        with pytest.raises(TypeError, match=named) as caught:
            pickle.dumps(holder)
        assert "canary" not in str(caught.value)


def test_levels_have_any_case_and_idle_connections_a_bound() -> None:
    assert LoggingConfig(level="debug") == LoggingConfig(level="DEBUG")
    assert ConnectionPoolConfig(max_connections=5).keepalive_connections == 5
    assert ConnectionPoolConfig(max_connections=5, max_keepalive_connections=0).keepalive_connections == 0
    with pytest.raises(ConfigurationError, match="at most max_connections") as caught:
        ConnectionPoolConfig(max_connections=5, max_keepalive_connections=6)
    assert caught.value.parameter == "max_keepalive_connections"


def test_a_key_file_needs_its_certificate(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.touch()
    with pytest.raises(ConfigurationError, match="cert_file") as caught:
        TLSConfig(key_file=str(file))
    assert caught.value.parameter == "key_file"
    assert TLSConfig(cert_file=str(file), key_file=str(file)).ca_file is None
