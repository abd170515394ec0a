"""Interceptors, and the chain that they are composed into once, at construction."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from llm_cost_ops.rpc.context import CallContext

__all__ = [
    "AnyInterceptor",
    "Interceptor",
    "Interceptors",
    "Req",
    "Res",
    "StreamContinuation",
    "StreamStreamInterceptor",
    "StreamingTransport",
    "Transport",
    "UnaryContinuation",
    "UnaryStreamInterceptor",
    "compose",
]

Req = TypeVar("Req")
Res = TypeVar("Res")

UnaryContinuation = Callable[[Req, CallContext], Awaitable[Res]]
StreamContinuation = Callable[[Req, CallContext], AsyncGenerator[Res, None]]


class Interceptor(Protocol):
    """Something around every call: a client's or a server's, in the same shape.

    Implement the method of each cardinality that matters; the others pass by. It is called
    concurrently. It may call `continuation` any number of times, and may await only that and
    `context.runtime`; so it works in the sync client and in the async one.

    Streams have methods of their own, which are async generators and close what they open:

        async def intercept_unary_stream(self, continuation, request, context):
            async with aclosing(continuation(request, context)) as messages:
                async for message in messages:
                    yield message

    and `intercept_stream_stream(self, continuation, requests, context)`, which gets an async iterable
    of requests. `rpc.streams.AroundStart` makes both of `intercept_unary_unary`.
    """

    def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Awaitable[Res]:
        """Do what is to be done before and after `await continuation(request, context)`."""


class UnaryStreamInterceptor(Protocol):
    """Something around calls that answer with a stream. See Interceptor."""

    def intercept_unary_stream(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        """Yield what `continuation(request, context)` yields, and close it."""


class StreamStreamInterceptor(Protocol):
    """Something around calls with streams both ways. See Interceptor."""

    def intercept_stream_stream(
        self,
        continuation: StreamContinuation[AsyncIterable[Req], Res],
        requests: AsyncIterable[Req],
        context: CallContext,
    ) -> AsyncGenerator[Res, None]:
        """Yield what `continuation(requests, context)` yields, and close it."""


AnyInterceptor = Interceptor | UnaryStreamInterceptor | StreamStreamInterceptor
Interceptors = Sequence[AnyInterceptor]


class Transport(Protocol):
    """The end of a client's chain: it takes the call to a server, or answers it in the process.

    One with an attribute `closed` that is true is asked no more: the call raises ClientClosedError.
    """

    async def unary_unary(self, request: Any, context: CallContext) -> Any:
        """Send the request, and return the response or raise RpcError."""

    async def aclose(self) -> None:
        """Let go of connections and threads. Does not suspend in a sync transport; may be called twice."""


class StreamingTransport(Transport, Protocol):
    """A transport that also carries streams. What it opens it lets go of when the generator is closed."""

    def unary_stream(self, request: Any, context: CallContext) -> AsyncGenerator[Any, None]:
        """Send the request, and yield the responses as they come, or raise RpcError."""

    def stream_stream(self, requests: AsyncIterable[Any], context: CallContext) -> AsyncGenerator[Any, None]:
        """Send the requests as they come, and yield the responses as they come, or raise RpcError."""


def compose(
    interceptors: Interceptors, end: Callable[..., Any], name: str = "intercept_unary_unary"
) -> Callable[..., Any]:
    """Wrap `end` in the interceptors that have the method `name`, the first outermost."""
    chain = end
    for interceptor in reversed(interceptors):
        method = getattr(interceptor, name, None)
        if method is not None:
            chain = partial(method, chain)
    return chain
