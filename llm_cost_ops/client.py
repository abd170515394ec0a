"""The clients, sync and async: configuration -> leaf -> interceptors -> channel -> resources.

This is the composition root: nothing else knows which parts a client is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, unquote

from llm_cost_ops._gen import resources
from llm_cost_ops.config import ClientConfig, split_base_url
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.interceptors.error_mapping import ErrorMapping
from llm_cost_ops.rpc.channel import UNSET, AsyncChannel, Channel
from llm_cost_ops.rpc.interceptor import Leaf
from llm_cost_ops.rpc.metadata import Metadata
from llm_cost_ops.rpc.runtime import AsyncRuntime, Runtime, SyncRuntime

if TYPE_CHECKING:
    from llm_cost_ops._gen.messages import GetHealthResponse, GetReadinessResponse

__all__ = ["AsyncCostOpsClient", "CostOpsClient"]


def _configured(
    config: ClientConfig | None, api_key: Any, base_url: str | None, timeout: Any
) -> ClientConfig:
    explicit = {"api_key": api_key, "base_url": base_url}
    given = {name: value for name, value in explicit.items() if value is not None}
    if timeout is not UNSET:
        given["timeout"] = timeout
    if config is None:
        return ClientConfig.from_env(**given)
    if not isinstance(config, ClientConfig):
        raise ConfigurationError("config must be a ClientConfig", parameter="config")
    return config.replace(**given) if given else config


def _embedded_leaf(config: ClientConfig, *, sync: bool) -> Leaf:
    from llm_cost_ops.service import open_service
    from llm_cost_ops.transports.inprocess import InProcessLeaf

    parts = split_base_url(config.base_url)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    durability = options.pop("durability", config.durability)
    if options:
        raise ConfigurationError(f"base_url: unknown option {min(options)!r}", parameter="base_url")
    if durability not in ("disk", "process"):
        raise ConfigurationError(
            f"base_url: durability must be 'disk' or 'process', not {durability!r}", parameter="base_url"
        )
    path = unquote(parts.path)[1:]
    service = open_service(
        str(Path(path).expanduser()) if path else None, durability=durability, group_commit=not sync
    )
    return InProcessLeaf(service.handler, service.aclose)


def _http_leaf(config: ClientConfig, http_client: Any, *, sync: bool) -> Leaf:
    from llm_cost_ops.transports.http import AsyncHttpLeaf, HttpLeaf

    kind: Any = HttpLeaf if sync else AsyncHttpLeaf
    pool = config.connection_pool
    verify: Any = config.verify_ssl
    if config.tls is not None:
        from llm_cost_ops.transports.tls import ssl_context

        verify = ssl_context(config.tls, verify=config.verify_ssl)
    leaf: Leaf = kind(
        config.base_url,
        max_connections=pool.max_connections,
        max_keepalive_connections=pool.max_keepalive_connections,
        keepalive_expiry=pool.keepalive_expiry,
        verify=verify,
        proxy=config.proxy,
        http_client=http_client,
    )
    return leaf


def _open_leaf(config: ClientConfig, http_client: Any, *, sync: bool) -> Leaf:
    scheme = split_base_url(config.base_url).scheme
    if http_client is not None and scheme not in ("http", "https"):
        raise ConfigurationError(
            f"http_client goes with an http(s) base_url, not with {scheme}", parameter="http_client"
        )
    if scheme == "sqlite":
        return _embedded_leaf(config, sync=sync)
    return _http_leaf(config, http_client, sync=sync)


def _chain(config: ClientConfig, interceptors: Sequence[Any], *, embedded: bool) -> list[Any]:
    """The interceptors of a client, outermost first: the user's see a call as its caller does."""
    chain = list(interceptors)
    if config.logging.enabled:
        from llm_cost_ops.interceptors.logging import CallLogging

        chain.append(CallLogging(config.logging))
    if config.metrics.enabled:
        from llm_cost_ops.interceptors.metrics import CallMetrics, exporters_of

        chain.append(CallMetrics(*exporters_of(config.metrics)))
    if not embedded:
        # The embedded service checks every request by the same rules.
        from llm_cost_ops.interceptors.validation import Validation
        from llm_cost_ops.service.checks import CHECKS

        chain.append(Validation(CHECKS, origin="client"))
    if config.cache is not None:
        from llm_cost_ops.interceptors.cache import Cache

        chain.append(Cache(config.cache))
    if config.retry.max_retries:
        from llm_cost_ops.interceptors.retry import Retry

        chain.append(Retry(config.retry))
    if config.circuit_breaker is not None:
        from llm_cost_ops.interceptors.circuit_breaker import CircuitBreaker

        chain.append(CircuitBreaker(config.circuit_breaker))
    if config.rate_limit is not None:
        from llm_cost_ops.interceptors.rate_limit import RateLimit

        chain.append(RateLimit(config.rate_limit))
    if config.api_key is not None and not embedded:
        from llm_cost_ops.interceptors.auth import Auth

        chain.append(Auth(config.api_key))
    chain.append(ErrorMapping())
    return chain


def _core(
    config: ClientConfig,
    leaf: Leaf | None,
    http_client: Any,
    interceptors: Sequence[Any],
    runtime: Runtime,
    *,
    sync: bool,
) -> tuple[Leaf, list[Any], dict[str, Any]]:
    embedded = split_base_url(config.base_url).scheme == "sqlite"
    chain = _chain(config, interceptors, embedded=embedded)
    leaf = leaf or _open_leaf(config, http_client, sync=sync)
    headers = dict(config.headers)
    if config.user_agent:
        headers["user-agent"] = config.user_agent
    options = {
        "runtime": runtime,
        "timeout": config.timeout,
        "metadata": Metadata(headers),
        "public_error": error_from_rpc,
    }
    return leaf, chain, options


class CostOpsClient:
    """The sync client. Safe to share between threads; close it, or use it as a context manager.

    `base_url` chooses the transport (see ClientConfig) and defaults to LLM_COST_OPS_BASE_URL, then
    to an embedded database in the working directory; `api_key` defaults to LLM_COST_OPS_API_KEY,
    and the embedded engine needs none. What is given here wins over `config`, and `config` over
    the environment. Nothing is opened or sent before the first call.

    Raises ConfigurationError for a wrong parameter.

        with CostOpsClient(base_url="sqlite:///costs.db") as client:
            receipt = client.usage.submit(
                organization_id="acme", provider="openai", model_id="gpt-4o",
                input_tokens=1000, output_tokens=500,
            )
            print(receipt.estimated_cost)
    """

    def __init__(
        self,
        api_key: Any = None,
        base_url: str | None = None,
        config: ClientConfig | None = None,
        *,
        timeout: Any = UNSET,
        http_client: Any = None,
        interceptors: Sequence[Any] = (),
        leaf: Leaf | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.config = _configured(config, api_key, base_url, timeout)
        made = _core(self.config, leaf, http_client, interceptors, runtime or SyncRuntime(), sync=True)
        self._channel = Channel(made[0], made[1], **made[2])

    @cached_property
    def usage(self) -> resources.UsageResource:
        """Records usage and reads it back."""
        return resources.UsageResource(self._channel)

    @cached_property
    def costs(self) -> resources.CostsResource:
        """Answers what usage cost."""
        return resources.CostsResource(self._channel)

    @cached_property
    def pricing(self) -> resources.PricingResource:
        """Keeps prices."""
        return resources.PricingResource(self._channel)

    @cached_property
    def analytics(self) -> resources.AnalyticsResource:
        """Answers how usage and cost move over time."""
        return resources.AnalyticsResource(self._channel)

    @cached_property
    def _health(self) -> resources.HealthResource:
        return resources.HealthResource(self._channel)

    def health(self, **options: Any) -> GetHealthResponse:
        """How the service and its parts are. Takes `timeout` and `headers`."""
        return self._health.get(**options)

    def ready(self, **options: Any) -> GetReadinessResponse:
        """Whether the service takes traffic; raises ServerError when not."""
        return self._health.ready(**options)

    def close(self) -> None:
        """Let go of connections, files and threads. May be called twice."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.config.base_url!r})"


class AsyncCostOpsClient:
    """The async client: the same as CostOpsClient but for `await`."""

    def __init__(
        self,
        api_key: Any = None,
        base_url: str | None = None,
        config: ClientConfig | None = None,
        *,
        timeout: Any = UNSET,
        http_client: Any = None,
        interceptors: Sequence[Any] = (),
        leaf: Leaf | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.config = _configured(config, api_key, base_url, timeout)
        made = _core(self.config, leaf, http_client, interceptors, runtime or AsyncRuntime(), sync=False)
        self._channel = AsyncChannel(made[0], made[1], **made[2])

    @cached_property
    def usage(self) -> resources.AsyncUsageResource:
        """Records usage and reads it back."""
        return resources.AsyncUsageResource(self._channel)

    @cached_property
    def costs(self) -> resources.AsyncCostsResource:
        """Answers what usage cost."""
        return resources.AsyncCostsResource(self._channel)

    @cached_property
    def pricing(self) -> resources.AsyncPricingResource:
        """Keeps prices."""
        return resources.AsyncPricingResource(self._channel)

    @cached_property
    def analytics(self) -> resources.AsyncAnalyticsResource:
        """Answers how usage and cost move over time."""
        return resources.AsyncAnalyticsResource(self._channel)

    @cached_property
    def _health(self) -> resources.AsyncHealthResource:
        return resources.AsyncHealthResource(self._channel)

    async def health(self, **options: Any) -> GetHealthResponse:
        """How the service and its parts are. Takes `timeout` and `headers`."""
        return await self._health.get(**options)

    async def ready(self, **options: Any) -> GetReadinessResponse:
        """Whether the service takes traffic; raises ServerError when not."""
        return await self._health.ready(**options)

    async def close(self) -> None:
        """Let go of connections, files and threads. May be called twice."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.config.base_url!r})"
