"""Streams of messages: taking them from a caller, driving them inline, taking them through interceptors.

A stream of answers is an async generator all the way from the transport to the channel. Whoever opens one
closes it, with `contextlib.aclosing`, so that ending early reaches the socket at once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from contextlib import aclosing, suppress
from typing import Any, Self, TypeVar

from llm_cost_ops.rpc.context import CallContext, drive, foreign_await
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation

__all__ = ["AroundStart", "Requests", "driven", "step"]

T = TypeVar("T")

_END: Any = object()


def driven(stream: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """A stream that never suspends, as a plain generator; closing that closes the stream.

    Raises ForeignAwaitError when it does suspend.
    """
    try:
        while True:
            try:
                message = step(stream)
            except StopAsyncIteration:
                return
            yield message
    finally:
        drive(_close(stream))


def step(stream: AsyncIterator[T]) -> T:
    """The next message of a stream that never suspends; StopAsyncIteration at its end."""
    advance: Any = stream.__anext__()
    # What a generator returns is its own iterator; other iterators may have coroutines.
    advance = advance if hasattr(advance, "send") else advance.__await__()
    try:
        awaited = advance.send(None)
    except StopIteration as stop:
        message: T = stop.value
        return message
    except RuntimeError as error:
        raise foreign_await(error) from error
    with suppress(GeneratorExit, StopAsyncIteration, StopIteration, RuntimeError):
        advance.throw(GeneratorExit)  # `close` would leave the generator as if it still ran
    raise foreign_await(awaited)


async def _close(stream: AsyncGenerator[object, None]) -> None:
    await stream.aclose()


class Requests(AsyncIterator[Any]):
    """The messages that a caller sends: from an iterable or an async one, each prepared when it is taken.

    A list or a tuple can be had again, from its start; `spent` says that the messages can't. `error` is
    what the caller's own iterable, or preparing one of its messages, raised: it is no fault of the call.
    """

    def __init__(
        self, source: Iterable[object] | AsyncIterable[object], prepare: Callable[[Any, int], Any]
    ) -> None:
        self._source = source
        self._prepare = prepare
        self._lasting = isinstance(source, list | tuple)
        self._messages: Any = None
        self._taken = 0
        self.error: BaseException | None = None

    @property
    def spent(self) -> bool:
        """Whether messages were taken that can't be had again."""
        return self._taken > 0 and not self._lasting

    def __aiter__(self) -> Self:
        if self._messages is None or self._lasting:
            source: Any = self._source
            self._messages = aiter(source) if hasattr(source, "__aiter__") else iter(source)
            self._taken = 0
        return self

    async def __anext__(self) -> Any:
        messages = self._messages
        try:
            if hasattr(messages, "__anext__"):
                message = await messages.__anext__()
            else:
                message = next(messages, _END)
                if message is _END:
                    raise StopAsyncIteration
            index, self._taken = self._taken, self._taken + 1
            return self._prepare(message, index)
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.error = error
            raise

    async def aclose(self) -> None:
        """Close the caller's generator, if it is one."""
        if isinstance(self._messages, AsyncGenerator):
            await self._messages.aclose()
        elif isinstance(self._messages, Generator):
            self._messages.close()


class AroundStart:
    """Gives an interceptor its stream methods: a stream passes through its `intercept_unary_unary` as a
    call whose answer is the stream's first message.

    So what is decided before a call, and what is tried again, is the same for streams until a message
    came through. Messages that were taken from a caller and can't be had again are never sent twice.
    """

    def intercept_unary_stream(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        """Take a stream of answers through `intercept_unary_unary` up to its first message."""
        return self._around(continuation, request, context)

    def intercept_stream_stream(
        self, continuation: StreamContinuation[Req, Res], requests: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        """Take streams both ways through `intercept_unary_unary` up to the first answer."""
        return self._around(continuation, requests, context)

    def failed_later(self, error: Exception, context: CallContext) -> None:
        """Be told of an error after the first message."""

    async def _around(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        failure: Exception | None = None

        async def begin(request: Any, context: CallContext) -> tuple[object, AsyncGenerator[object, None]]:
            nonlocal failure
            if failure is not None and getattr(request, "spent", False):
                raise failure
            stream = continuation(request, context)
            try:
                return await anext(stream, _END), stream
            except Exception as error:
                failure = error
                if getattr(request, "spent", False):
                    context.retry = False
                raise

        unary: Any = self.intercept_unary_unary  # type: ignore[attr-defined]  # of the class that mixes this in
        first, stream = await unary(begin, request, context)
        async with aclosing(stream):
            if first is _END:
                return
            yield first
            try:
                async for message in stream:
                    yield message
            except Exception as error:
                self.failed_later(error, context)
                raise
