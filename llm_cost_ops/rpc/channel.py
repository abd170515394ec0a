"""Channels: what resources call. They start the deadline, make the key, and run the chain."""

from __future__ import annotations

import copy
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
)
from contextlib import aclosing
from functools import partial
from typing import Any, Self, TypeVar

from llm_cost_ops.rpc.context import CallContext, Metadata, drive, uuid7
from llm_cost_ops.rpc.interceptor import Interceptors, Transport, compose
from llm_cost_ops.rpc.method import MethodDescriptor
from llm_cost_ops.rpc.pager import AsyncPager, Pager
from llm_cost_ops.rpc.raw import RawResponse
from llm_cost_ops.rpc.runtime import AsyncRuntime, Runtime, SyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode, client_closed, invalid_argument
from llm_cost_ops.rpc.streams import Requests, driven

__all__ = ["UNSET", "AsyncChannel", "Channel"]


Req = TypeVar("Req")
Res = TypeVar("Res")

# Makes the error that callers and interceptors see of an RpcError, the attempts, and the seconds waited.
PublicError = Callable[[RpcError, int, float], Exception]

# Seconds that no clock of the system can add up; a longer timeout is no deadline.
_ENDLESS = 1e9


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET: Any = _Unset()


class _Open:
    closed = False


class _Core:
    """A transport under a chain of interceptors, and the defaults of its calls."""

    def __init__(
        self,
        transport: Transport,
        interceptors: Interceptors,
        runtime: Runtime,
        *,
        timeout: float | None,
        metadata: Metadata | None,
        public_error: PublicError | None,
    ) -> None:
        self.transport = transport
        self._closable: Any = transport if hasattr(transport, "closed") else _Open
        self.runtime = runtime
        self.raw = False
        self.interceptors = tuple(interceptors)
        self.metadata = metadata or Metadata()
        self.public_error = public_error or _same
        self.timeout = timeout
        self._seconds = _seconds(timeout)
        self._unary_unary = compose(interceptors, self._sent)
        self._streams = {
            name: compose(interceptors, partial(self._streamed, name), f"intercept_{name}")
            for name in ("unary_stream", "stream_stream")
        }

    def changed(self, interceptors: Interceptors, timeout: float | None, metadata: Metadata) -> _Core:
        """The same transport under another chain, with other defaults."""
        return _Core(
            self.transport,
            interceptors,
            self.runtime,
            timeout=timeout,
            metadata=metadata,
            public_error=self.public_error,
        )

    def begin(
        self,
        method: MethodDescriptor[Any, Any],
        timeout: float | None,
        headers: Mapping[str, str] | None,
        retry: object,
        key: str,
    ) -> CallContext:
        if self._closable.closed:
            raise client_closed()
        metadata = self.metadata.copy()
        if headers:
            try:
                for name, value in dict(headers).items():
                    metadata.set(name, value)
            except (ValueError, TypeError, AttributeError) as error:
                raise _invalid("headers", str(error)) from None
        seconds = self._seconds if timeout is UNSET else _seconds(timeout)
        deadline = None if seconds is None else self.runtime.monotonic() + seconds
        context = CallContext(method, self.runtime, metadata, deadline, key)
        if retry is not UNSET:
            if retry and not hasattr(retry, "max_retries"):
                raise _invalid("retry", "must be a RetryConfig, or None for no retries")
            context.retry = retry or False
        return context

    async def _sent(self, request: Any, context: CallContext) -> Any:
        """The end of the chain of unary calls. Errors are mapped here: interceptors see one tree."""
        try:
            return await self.transport.unary_unary(request, context)
        except RpcError as error:
            raise self._mapped(error, context) from error.__cause__

    async def _streamed(self, name: str, request: Any, context: CallContext) -> AsyncGenerator[Any, None]:
        """The end of a chain of streams, which fails where its reader takes longer than the deadline."""
        begin = getattr(self.transport, name, None)
        try:
            if begin is None:
                raise RpcError(StatusCode.UNIMPLEMENTED, "this transport carries no streams", origin="client")
            async with aclosing(begin(request, context)) as messages:
                async for message in messages:
                    yield message
                    context.check_deadline()
        except RpcError as error:
            raise self._mapped(error, context) from error.__cause__

    def refused(self, error: RpcError) -> Exception:
        """The public error of one that came before the chain: nothing was sent."""
        return self.public_error(error, 0, 0.0)

    def _mapped(self, error: RpcError, context: CallContext) -> Exception:
        refused = error.origin == "client" and error.code is StatusCode.INVALID_ARGUMENT
        return self.public_error(error, 0 if refused else context.attempt, context.waited)

    async def unary_unary(
        self,
        method: MethodDescriptor[Req, Res],
        request: Req,
        timeout: float | None = UNSET,
        headers: Mapping[str, str] | None = None,
        retry: object = UNSET,
        idempotency_key: str = "",
    ) -> Any:
        try:
            context = self.begin(method, timeout, headers, retry, idempotency_key)
            if method.fill_key is not None:
                request, context.idempotency_key = method.fill_key(request, idempotency_key, context.identify)
            response = await self._unary_unary(request, context)
        except RpcError as error:
            raise self.refused(error) from error.__cause__
        returned = response if method.unwrap is None else getattr(response, method.unwrap)
        return RawResponse(response, returned, context) if self.raw else returned

    async def unary_stream(
        self,
        method: MethodDescriptor[Req, Res],
        request: Req,
        timeout: float | None,
        headers: Mapping[str, str] | None,
        retry: Any,
    ) -> AsyncGenerator[Any, None]:
        try:
            context = self.begin(method, timeout, headers, retry, "")
            async with aclosing(self._streams["unary_stream"](request, context)) as messages:
                async for message in messages:
                    if method.unwrap is None:
                        yield message
                        continue
                    unwrapped = getattr(message, method.unwrap)
                    for each in unwrapped if isinstance(unwrapped, list) else [unwrapped]:
                        yield each
        except RpcError as error:
            raise self.refused(error) from error.__cause__

    async def stream_stream(
        self,
        method: MethodDescriptor[Req, Res],
        requests: Iterable[Req] | AsyncIterable[Req],
        timeout: float | None,
        headers: Mapping[str, str] | None,
        retry: object,
        idempotency_key: str,
    ) -> AsyncGenerator[Any, None]:
        def prepare(request: Req, index: int) -> Req:
            if not isinstance(request, method.request.type):
                raise _invalid(f"requests[{index}]", f"must be a {method.request.type.__name__}")
            if method.fill_key is None:
                return request
            return method.fill_key(request, "", lambda: f"{key}:{index}")[0]

        try:
            key = idempotency_key or uuid7()
            context = self.begin(method, timeout, headers, retry, key if method.fill_key is not None else "")
            if not hasattr(requests, "__iter__") and not hasattr(requests, "__aiter__"):
                raise _invalid("requests", "must be an iterable")
            taken = Requests(requests, prepare)
            call = self._streams["stream_stream"](taken, context)
            async with aclosing(taken), aclosing(call) as messages:
                async for message in messages:
                    yield message if method.unwrap is None else getattr(message, method.unwrap)
        except RpcError as error:
            raise self.refused(error) from error.__cause__


def _seconds(timeout: float | None) -> float | None:
    """A timeout in seconds, None for none."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise _invalid("timeout", f"must be a number of seconds, 0 or more, not {timeout!r}")
    return timeout if timeout < _ENDLESS else None


def _same(error: RpcError, _attempts: int, _waited: float) -> Exception:
    return error


def _invalid(field: str, rule: str) -> RpcError:
    return invalid_argument(field, rule, origin="client")


class _Channel:
    def __init__(
        self,
        transport: Transport,
        interceptors: Interceptors = (),
        *,
        runtime: Runtime | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        public_error: PublicError | None = None,
    ) -> None:
        runtime = runtime or self._runtime()
        self.core = _Core(
            transport, interceptors, runtime, timeout=timeout, metadata=metadata, public_error=public_error
        )
        self._owner = True

    @property
    def owner(self) -> bool:
        """Whether it opened its transport, and closes it."""
        return self._owner

    @staticmethod
    def _runtime() -> Runtime:
        raise NotImplementedError

    def derived(
        self,
        *,
        interceptors: Interceptors | None = None,
        timeout: float | None = UNSET,
        headers: Mapping[str, str] | None = None,
        raw: bool | None = None,
    ) -> Self:
        """A channel on the same transport, which it does not close, with some things changed.

        With `raw`, its calls return RawResponse objects. Raises ValueError for a wrong header.
        """
        core = self.core
        metadata = core.metadata.copy()
        for name, value in (headers or {}).items():
            metadata.set(name, value)
        made = copy.copy(self)
        made.core = core.changed(
            core.interceptors if interceptors is None else interceptors,
            core.timeout if timeout is UNSET else timeout,
            metadata,
        )
        made.core.raw = core.raw if raw is None else raw
        made._owner = False  # noqa: SLF001  # a copy of this object
        return made


class Channel(_Channel):
    """A sync client's way to the service."""

    @staticmethod
    def _runtime() -> Runtime:
        return SyncRuntime()

    def unary_unary(
        self,
        method: MethodDescriptor[Req, Res],
        request: Req,
        timeout: float | None = UNSET,
        headers: Mapping[str, str] | None = None,
        retry: object = UNSET,
        idempotency_key: str = "",
    ) -> Any:
        """Call a method; what its Python method returns comes back.

        `timeout` is seconds for the whole call, None for no deadline; `headers` are added to the
        channel's metadata; `retry` is a RetryConfig for this call, None or False for no retries.
        """
        return drive(self.core.unary_unary(method, request, timeout, headers, retry, idempotency_key))

    def pages(
        self,
        method: MethodDescriptor[Req, Res],
        request: Req,
        timeout: float | None = UNSET,
        headers: Mapping[str, str] | None = None,
        retry: object = UNSET,
    ) -> Any:
        """Call a method whose answer is a page; a Pager comes back."""

        def ask(request: Req) -> Any:
            return drive(self.core.unary_unary(method, request, timeout, headers, retry))

        return ask(request) if self.core.raw else Pager(ask, request, self.core.refused)

    def unary_stream(
        self,
        method: MethodDescriptor[Req, Res],
        request: Req,
        timeout: float | None = UNSET,
        headers: Mapping[str, str] | None = None,
        retry: object = UNSET,
    ) -> Generator[Any, None, None]:
        """Call a method that answers with a stream; nothing is sent before the first `next`.

        `timeout` is seconds for the whole stream. Closing the generator ends the call. A failed call is
        tried again until its first message came, as `retry` says, and not after that.
        """
        return driven(self.core.unary_stream(method, request, timeout, headers, retry))

    def stream_stream(
        self,
        method: MethodDescriptor[Req, Res],
        requests: Iterable[Req],
        timeout: float | None = UNSET,
        headers: Mapping[str, str] | None = None,
        retry: object = UNSET,
        idempotency_key: str = "",
    ) -> Generator[Any, None, None]:
        """Call a method with streams both ways, as `unary_stream`.

        Requests are taken in this thread while an answer is waited for. Those of a list can be sent
        again, as long as no answer came; those of another iterable are taken once.
        """
        stream = self.core.stream_stream(method, requests, timeout, headers, retry, idempotency_key)
        return driven(stream)

    def close(self) -> None:
        """Let go of the transport's connections and threads, if this channel opened them."""
        if self._owner:
            drive(_close(self.core.transport))


class AsyncChannel(_Channel):
    """An async client's way to the service."""

    @staticmethod
    def _runtime() -> Runtime:
        return AsyncRuntime()

    def unary_unary(
        self,
        method: MethodDescriptor[Req, Res],
        request: Req,
        timeout: float | None = UNSET,
        headers: Mapping[str, str] | None = None,
        retry: object = UNSET,
        idempotency_key: str = "",
    ) -> Coroutine[Any, Any, Any]:
        """Call a method; what its Python method returns comes back. As Channel.unary_unary."""
        return self.core.unary_unary(method, request, timeout, headers, retry, idempotency_key)

    def pages(
        self,
        method: MethodDescriptor[Req, Res],
        request: Req,
        timeout: float | None = UNSET,
        headers: Mapping[str, str] | None = None,
        retry: object = UNSET,
    ) -> Any:
        """Call a method whose answer is a page; an AsyncPager comes back."""

        def ask(request: Req) -> Awaitable[Any]:
            return self.core.unary_unary(method, request, timeout, headers, retry)

        return ask(request) if self.core.raw else AsyncPager(ask, request, self.core.refused)

    def unary_stream(
        self,
        method: MethodDescriptor[Req, Res],
        request: Req,
        timeout: float | None = UNSET,
        headers: Mapping[str, str] | None = None,
        retry: object = UNSET,
    ) -> AsyncGenerator[Any, None]:
        """Call a method that answers with a stream. As Channel.unary_stream."""
        return self.core.unary_stream(method, request, timeout, headers, retry)

    def stream_stream(
        self,
        method: MethodDescriptor[Req, Res],
        requests: Iterable[Req] | AsyncIterable[Req],
        timeout: float | None = UNSET,
        headers: Mapping[str, str] | None = None,
        retry: object = UNSET,
        idempotency_key: str = "",
    ) -> AsyncGenerator[Any, None]:
        """Call a method with streams both ways. As Channel.stream_stream."""
        return self.core.stream_stream(method, requests, timeout, headers, retry, idempotency_key)

    async def close(self) -> None:
        """Let go of the transport's connections and threads, if this channel opened them."""
        if self._owner:
            await self.core.transport.aclose()


async def _close(transport: Transport) -> None:
    await transport.aclose()
