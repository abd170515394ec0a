"""The clients, sync and async: configuration -> transport -> interceptors -> channel -> resources.

This is the composition root: nothing else knows which parts a client is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

from llm_cost_ops._gen import resources
from llm_cost_ops.client.attribution import Attributes, Attribution, AttributionFields, attribute
from llm_cost_ops.client.options import chain_of, checked
from llm_cost_ops.client.recording import Recording, async_connection, sync_connection
from llm_cost_ops.client.transports import open_transport
from llm_cost_ops.client.uploads import AsyncStreamingUsageResource, StreamingUsageResource
from llm_cost_ops.config import (
    EMBEDDED,
    ApiKey,
    ClientConfig,
    RetryConfig,
    split_base_url,
    without_password,
)
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.rpc.channel import UNSET, AsyncChannel, Channel
from llm_cost_ops.rpc.context import Metadata
from llm_cost_ops.rpc.forks import CachedProperty
from llm_cost_ops.rpc.interceptor import AnyInterceptor, Interceptors, Transport
from llm_cost_ops.rpc.runtime import Runtime
from llm_cost_ops.rpc.threads import beside
from llm_cost_ops.wire.unknown import UNKNOWN_FIELDS

if TYPE_CHECKING:
    import httpx

    from llm_cost_ops._gen.messages import GetHealthResponse, GetReadinessResponse
    from llm_cost_ops.client.flush_report import FlushReport
    from llm_cost_ops.rpc.raw import RawResponse
    from llm_cost_ops.transports.serializer import Serializer

    HttpClient = httpx.Client | httpx.AsyncClient

__all__ = ["AsyncCostOpsClient", "CostOpsClient", "RawAsyncCostOpsClient", "RawCostOpsClient"]

Made = TypeVar("Made", bound="_Client")

_SDKClient = TypeVar("_SDKClient")


def _configured(
    config: ClientConfig | None,
    api_key: ApiKey | None,
    base_url: str | None,
    organization_id: str | None,
    timeout: float | None,
) -> ClientConfig:
    explicit: dict[str, Any] = {
        "api_key": api_key,
        "base_url": base_url,
        "organization_id": organization_id,
    }
    given = {name: value for name, value in explicit.items() if value is not None}
    if timeout is not UNSET:
        given["timeout"] = timeout
    if config is None:
        return ClientConfig.from_env(**given)
    if not isinstance(config, ClientConfig):
        raise ConfigurationError("config must be a ClientConfig", parameter="config")
    return config.replace(**given) if given else config


# Errors from before the chain: nothing was sent.
_outside_the_chain = partial(error_from_rpc, attempts=0)


class _Client:
    """What both clients do alike: be set up, and derive others."""

    config: ClientConfig
    _channel: Any

    def _open(
        self,
        api_key: ApiKey | None,
        base_url: str | None,
        config: ClientConfig | None,
        organization_id: str | None,
        timeout: float | None,
        http_client: HttpClient | None,
        serializer: Serializer | None,
        interceptors: Interceptors,
        transport: Transport | None,
        runtime: Runtime | None,
        *,
        sync: bool,
    ) -> None:
        self.config = config = _configured(config, api_key, base_url, organization_id, timeout)
        if transport is not None and (http_client is not None or serializer is not None):
            parameter = "serializer" if http_client is None else "http_client"
            raise ConfigurationError(
                f"{parameter} can't go with a transport of your own", parameter=parameter
            )
        self._interceptors = checked(interceptors)
        self._embedded = transport is None and split_base_url(config.base_url).scheme in EMBEDDED
        headers = dict(config.headers)
        if config.user_agent:
            headers["user-agent"] = config.user_agent
        by_name = split_base_url(config.base_url).scheme not in ("grpc", "grpcs")
        if by_name and config.unknown_fields == "keep":
            headers[UNKNOWN_FIELDS] = "keep"
        self._attribution = Attribution(
            Attributes(
                organization_id=config.organization_id, project_id=config.project_id, labels=config.labels
            )
        )
        chain = self._chain(config)
        kind: Any = Channel if sync else AsyncChannel
        self._channel = kind(
            transport or open_transport(config, http_client, serializer, sync=sync),
            chain,
            runtime=runtime,
            timeout=config.timeout,
            metadata=Metadata(headers),
            public_error=error_from_rpc,
        )
        connect = partial(sync_connection if sync else async_connection, self._channel)
        self._recording = Recording(config.recorder, self._attribution, connect)

    def _chain(self, config: ClientConfig, parent: Interceptors = (), same_key: bool = False) -> Interceptors:
        checking: list[AnyInterceptor] = []
        if not self._embedded:
            from llm_cost_ops.rules.batches import BatchCheck
            from llm_cost_ops.rules.requests import CHECKS, Validation

            validation = Validation(CHECKS, origin="client", public_error=_outside_the_chain)
            checking = [validation, BatchCheck()]
        return chain_of(
            config,
            self._interceptors,
            [self._attribution, *checking],
            embedded=self._embedded,
            sync=isinstance(self, CostOpsClient),
            parent=parent,
            same_key=same_key,
        )

    def with_options(
        self,
        *,
        timeout: float | None = UNSET,
        retry: RetryConfig | None = UNSET,
        headers: Mapping[str, str] | None = None,
        api_key: ApiKey | None = UNSET,
    ) -> Self:
        """A client on the same connections or the same engine, with some settings changed.

        It shares the rate limit, the circuit breaker, the retry budget and what is registered for
        logging and metrics with this one, and the cache unless `api_key` changes. `retry=None`
        means no retries; `headers` are added to those of this client. What it records beside the
        caller's work (`usage.record`, `instrument`) goes the way of the first client, with the key and
        the headers of that one. Closing it closes nothing: close the client that was made first.
        """
        changes: dict[str, Any] = {}
        if timeout is not UNSET:
            changes["timeout"] = timeout
        if retry is not UNSET:
            changes["retry"] = retry or self.config.retry.replace(max_retries=0)
        if headers:
            changes["default_headers"] = {**self.config.default_headers, **headers}
        if api_key is not UNSET:
            changes["api_key"] = api_key
        config = self.config.replace(**changes)
        chain = self._chain(config, self._channel.core.interceptors, config.api_key == self.config.api_key)
        channel = self._channel.derived(interceptors=chain, timeout=config.timeout, headers=headers)
        return self._derived(type(self), config, channel)

    def attribute(
        self,
        *,
        organization_id: str = "",
        project_id: str = "",
        user_id: str = "",
        session_id: str = "",
        labels: Mapping[str, str] | None = None,
        tags: str | Sequence[str] = (),
    ) -> AbstractContextManager[None]:
        """Say whose the calls are that are recorded in a block, in tasks that it starts too.

            with client.attribute(user_id="u-1", labels={"feature": "search"}):
                client.usage.record(provider="openai", model_id="gpt-4o", input_tokens=10, output_tokens=5)

        A record's own fields win, then the innermost block, then the client's defaults.
        """
        return attribute(
            organization_id=organization_id,
            project_id=project_id,
            user_id=user_id,
            session_id=session_id,
            labels=labels,
            tags=tags,
        )

    def instrument(
        self,
        sdk_client: _SDKClient,
        *,
        provider: str = "",
        stream_usage: bool | Literal["auto"] = "auto",
        **attribution: Unpack[AttributionFields],
    ) -> _SDKClient:
        """Have each call that a provider's SDK makes recorded beside the caller's work; gives that object.

            llm = client.instrument(openai.OpenAI(), labels={"feature": "search"})

        Takes clients of openai, anthropic, mistralai, cohere, sync or async, and httpx clients. What was
        said of a client before is replaced. Calls count as those of the block of `attribute` that they are
        made in, else as `attribution` says (the fields of `attribute`), else as this client's.

        Args:
            sdk_client: the SDK's client; it and those derived from it (`with_options`) are recorded.
            provider: who serves the calls, when the host that they go to does not tell.
            stream_usage: whether streams of chat completions are asked for their usage; the chunk with it is
                kept from the caller. "auto" asks hosts that are known to take it.

        Raises TypeError for a client that can't be instrumented.
        """
        from llm_cost_ops.client.observing import options_for
        from llm_cost_ops.instrumentation.hooks import instrument

        proxy = self.config.recording_proxy
        options = options_for(sdk_client, self._recording, provider, stream_usage, attribution, proxy)
        instrument(sdk_client, options)
        return sdk_client

    def uninstrument(self, sdk_client: object) -> None:
        """Let a client be as it was before `instrument`."""
        from llm_cost_ops.instrumentation.hooks import uninstrument

        uninstrument(sdk_client)

    def close_on_sigterm(self) -> None:
        """Have SIGTERM send what was recorded before it does what it did before. Only in the main thread."""
        self._recording.close_on_sigterm()

    def _derived(self, kind: type[Made], config: ClientConfig, channel: Channel | AsyncChannel) -> Made:
        made = object.__new__(kind)
        kept = {name: value for name, value in vars(self).items() if name not in _RESOURCES}
        vars(made).update({**kept, "config": config, "_channel": channel})
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={without_password(self.config.base_url)!r})"


_RESOURCES = frozenset({"_health", "analytics", "audit", "costs", "pricing", "privacy", "retention", "usage"})


class _SyncClient(_Client):
    _channel: Channel

    def close(self) -> None:
        """Send what was recorded, and let go of connections, files and threads. May be called twice."""
        if self._channel.owner:
            self._recording.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _AsyncClient(_Client):
    _channel: AsyncChannel

    async def close(self) -> None:
        """Send what was recorded, and let go of connections, files and threads. May be called twice."""
        if self._channel.owner and not self._recording.begun:
            self._recording.close()
        elif self._channel.owner:
            await beside(self._recording.close)
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class CostOpsClient(_SyncClient):
    """The sync client. Safe to share between threads; close it, or use it as a context manager.

    `base_url` chooses the transport (see ClientConfig) and defaults to LLM_COST_OPS_BASE_URL, then
    to an embedded database in the working directory; `api_key` defaults to LLM_COST_OPS_API_KEY,
    and the embedded engine needs none. `organization_id` defaults to LLM_COST_OPS_ORGANIZATION_ID: it is
    that of records, and of questions about one record, that name none. What is given here wins over
    `config`, and `config` over the environment. `http_client` is an httpx client to send HTTP calls with,
    `serializer` writes messages in another form than JSON or protobuf (see
    transports.serializer.Serializer), and `transport` replaces the transport. Nothing is opened or sent
    before the first call.

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
        api_key: ApiKey | None = None,
        base_url: str | None = None,
        config: ClientConfig | None = None,
        *,
        organization_id: str | None = None,
        timeout: float | None = UNSET,
        http_client: httpx.Client | None = None,
        serializer: Serializer | None = None,
        interceptors: Interceptors = (),
        transport: Transport | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        mine = (http_client, serializer, interceptors, transport, runtime)
        self._open(api_key, base_url, config, organization_id, timeout, *mine, sync=True)

    @CachedProperty
    def usage(self) -> StreamingUsageResource:
        """Submit, record, stream, list and export usage; correct and void it."""
        return StreamingUsageResource(self._channel, self._recording)

    @CachedProperty
    def costs(self) -> resources.CostsResource:
        """What usage cost: sums and groups, receipts of single calls, estimates, repricing."""
        return resources.CostsResource(self._channel)

    @CachedProperty
    def pricing(self) -> resources.PricingResource:
        """Price cards: list and get them, and add your own."""
        return resources.PricingResource(self._channel)

    @CachedProperty
    def analytics(self) -> resources.AnalyticsResource:
        """Usage and cost over time."""
        return resources.AnalyticsResource(self._channel)

    @CachedProperty
    def audit(self) -> resources.AuditResource:
        """The audit log: who changed keys, prices and recorded usage, and when."""
        return resources.AuditResource(self._channel)

    @CachedProperty
    def privacy(self) -> resources.PrivacyResource:
        """Erases a user from what is recorded."""
        return resources.PrivacyResource(self._channel)

    @CachedProperty
    def retention(self) -> resources.RetentionResource:
        """For how many days records of an organization are kept."""
        return resources.RetentionResource(self._channel)

    @CachedProperty
    def _health(self) -> resources.HealthResource:
        return resources.HealthResource(self._channel)

    @property
    def with_raw_response(self) -> RawCostOpsClient:
        """This client with methods that return RawResponse objects: status, headers, attempts and all.

            answer = client.with_raw_response.usage.submit(...)
            print(answer.status, answer.request_id, answer.parsed.estimated_cost)

        Lists return the raw response of one page. Streams and record() have none.
        """
        return self._derived(RawCostOpsClient, self.config, self._channel.derived(raw=True))

    def health(
        self, *, timeout: float | None = UNSET, headers: Mapping[str, str] | None = None
    ) -> GetHealthResponse:
        """Whether the service and each of its components works."""
        return self._health.get(timeout=timeout, headers=headers)

    def ready(
        self, *, timeout: float | None = UNSET, headers: Mapping[str, str] | None = None
    ) -> GetReadinessResponse:
        """Whether the service takes traffic; raises ServerError when not."""
        return self._health.ready(timeout=timeout, headers=headers)

    def flush(self, timeout: float | None = None) -> FlushReport:
        """Wait until all that was recorded is sent, for at most so many seconds, and say what became of it.

        `timeout` is RecorderConfig's shutdown_timeout when not given.
        """
        return self._recording.flush(timeout)


class AsyncCostOpsClient(_AsyncClient):
    """The async client: the same as CostOpsClient but for `await`."""

    def __init__(
        self,
        api_key: ApiKey | None = None,
        base_url: str | None = None,
        config: ClientConfig | None = None,
        *,
        organization_id: str | None = None,
        timeout: float | None = UNSET,
        http_client: httpx.AsyncClient | None = None,
        serializer: Serializer | None = None,
        interceptors: Interceptors = (),
        transport: Transport | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        mine = (http_client, serializer, interceptors, transport, runtime)
        self._open(api_key, base_url, config, organization_id, timeout, *mine, sync=False)

    @CachedProperty
    def usage(self) -> AsyncStreamingUsageResource:
        """Submit, record, stream, list and export usage; correct and void it."""
        return AsyncStreamingUsageResource(self._channel, self._recording)

    @CachedProperty
    def costs(self) -> resources.AsyncCostsResource:
        """What usage cost: sums and groups, receipts of single calls, estimates, repricing."""
        return resources.AsyncCostsResource(self._channel)

    @CachedProperty
    def pricing(self) -> resources.AsyncPricingResource:
        """Price cards: list and get them, and add your own."""
        return resources.AsyncPricingResource(self._channel)

    @CachedProperty
    def analytics(self) -> resources.AsyncAnalyticsResource:
        """Usage and cost over time."""
        return resources.AsyncAnalyticsResource(self._channel)

    @CachedProperty
    def audit(self) -> resources.AsyncAuditResource:
        """The audit log: who changed keys, prices and recorded usage, and when."""
        return resources.AsyncAuditResource(self._channel)

    @CachedProperty
    def privacy(self) -> resources.AsyncPrivacyResource:
        """Erases a user from what is recorded."""
        return resources.AsyncPrivacyResource(self._channel)

    @CachedProperty
    def retention(self) -> resources.AsyncRetentionResource:
        """For how many days records of an organization are kept."""
        return resources.AsyncRetentionResource(self._channel)

    @CachedProperty
    def _health(self) -> resources.AsyncHealthResource:
        return resources.AsyncHealthResource(self._channel)

    @property
    def with_raw_response(self) -> RawAsyncCostOpsClient:
        """This client with methods that return RawResponse objects, as CostOpsClient.with_raw_response."""
        return self._derived(RawAsyncCostOpsClient, self.config, self._channel.derived(raw=True))

    async def health(
        self, *, timeout: float | None = UNSET, headers: Mapping[str, str] | None = None
    ) -> GetHealthResponse:
        """Whether the service and each of its components works."""
        return await self._health.get(timeout=timeout, headers=headers)

    async def ready(
        self, *, timeout: float | None = UNSET, headers: Mapping[str, str] | None = None
    ) -> GetReadinessResponse:
        """Whether the service takes traffic; raises ServerError when not."""
        return await self._health.ready(timeout=timeout, headers=headers)

    async def flush(self, timeout: float | None = None) -> FlushReport:
        """Wait until all that was recorded is sent, as CostOpsClient.flush."""
        return await beside(self._recording.flush, timeout)


class RawCostOpsClient(_SyncClient):
    """What `CostOpsClient.with_raw_response` is. It shares connections, and closing it closes nothing."""

    @CachedProperty
    def usage(self) -> resources.RawUsageResource:
        return resources.RawUsageResource(self._channel)

    @CachedProperty
    def costs(self) -> resources.RawCostsResource:
        return resources.RawCostsResource(self._channel)

    @CachedProperty
    def pricing(self) -> resources.RawPricingResource:
        return resources.RawPricingResource(self._channel)

    @CachedProperty
    def analytics(self) -> resources.RawAnalyticsResource:
        return resources.RawAnalyticsResource(self._channel)

    @CachedProperty
    def audit(self) -> resources.RawAuditResource:
        return resources.RawAuditResource(self._channel)

    @CachedProperty
    def privacy(self) -> resources.RawPrivacyResource:
        return resources.RawPrivacyResource(self._channel)

    @CachedProperty
    def retention(self) -> resources.RawRetentionResource:
        return resources.RawRetentionResource(self._channel)

    @CachedProperty
    def _health(self) -> resources.RawHealthResource:
        return resources.RawHealthResource(self._channel)

    def health(
        self, *, timeout: float | None = UNSET, headers: Mapping[str, str] | None = None
    ) -> RawResponse[GetHealthResponse]:
        """Whether the service and each of its components works."""
        return self._health.get(timeout=timeout, headers=headers)

    def ready(
        self, *, timeout: float | None = UNSET, headers: Mapping[str, str] | None = None
    ) -> RawResponse[GetReadinessResponse]:
        """Whether the service takes traffic; raises ServerError when not."""
        return self._health.ready(timeout=timeout, headers=headers)


class RawAsyncCostOpsClient(_AsyncClient):
    """What `AsyncCostOpsClient.with_raw_response` is; as RawCostOpsClient."""

    @CachedProperty
    def usage(self) -> resources.RawAsyncUsageResource:
        return resources.RawAsyncUsageResource(self._channel)

    @CachedProperty
    def costs(self) -> resources.RawAsyncCostsResource:
        return resources.RawAsyncCostsResource(self._channel)

    @CachedProperty
    def pricing(self) -> resources.RawAsyncPricingResource:
        return resources.RawAsyncPricingResource(self._channel)

    @CachedProperty
    def analytics(self) -> resources.RawAsyncAnalyticsResource:
        return resources.RawAsyncAnalyticsResource(self._channel)

    @CachedProperty
    def audit(self) -> resources.RawAsyncAuditResource:
        return resources.RawAsyncAuditResource(self._channel)

    @CachedProperty
    def privacy(self) -> resources.RawAsyncPrivacyResource:
        return resources.RawAsyncPrivacyResource(self._channel)

    @CachedProperty
    def retention(self) -> resources.RawAsyncRetentionResource:
        return resources.RawAsyncRetentionResource(self._channel)

    @CachedProperty
    def _health(self) -> resources.RawAsyncHealthResource:
        return resources.RawAsyncHealthResource(self._channel)

    async def health(
        self, *, timeout: float | None = UNSET, headers: Mapping[str, str] | None = None
    ) -> RawResponse[GetHealthResponse]:
        """Whether the service and each of its components works."""
        return await self._health.get(timeout=timeout, headers=headers)

    async def ready(
        self, *, timeout: float | None = UNSET, headers: Mapping[str, str] | None = None
    ) -> RawResponse[GetReadinessResponse]:
        """Whether the service takes traffic; raises ServerError when not."""
        return await self._health.ready(timeout=timeout, headers=headers)
