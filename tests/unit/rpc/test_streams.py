"""Streams are driven inline by the sync client, and closed when they are left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

import pytest

from llm_cost_ops.rpc.batches import batches_in_asyncio
from llm_cost_ops.rpc.channel import AsyncChannel, Channel
from llm_cost_ops.rpc.context import CallContext, ForeignAwaitError, drive
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.rpc.streams import AroundStart, Requests, driven
from tests.tiny_service import FIND_NOTES, PUT_NOTE, GetNoteRequest, PutNoteRequest, PutNoteResponse


class CountingLeaf:
    """Streams numbers, and keeps what was asked and closed; fails as `failures` say, before a message."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0
        self.taken: list[Any] = []
        self.closed = 0

    async def unary_unary(self, request: Any, context: CallContext) -> Any:
        raise NotImplementedError

    async def unary_stream(self, request: Any, context: CallContext) -> AsyncGenerator[Any, None]:
        self.calls += 1
        try:
            if self.failures:
                raise self.failures.pop(0)
            for number in range(5):
                await context.runtime.sleep(0)
                yield number
        finally:
            self.closed += 1

    async def stream_stream(self, requests: Any, context: CallContext) -> AsyncGenerator[Any, None]:
        self.calls += 1
        try:
            async for request in requests:
                self.taken.append(request)
                if self.failures:
                    raise self.failures.pop(0)
                yield PutNoteResponse()
        finally:
            self.closed += 1

    async def aclose(self) -> None:
        pass


class Passing:
    def __init__(self) -> None:
        self.ended: list[str] = []

    async def intercept_unary_stream(
        self, continuation: Any, request: Any, context: CallContext
    ) -> AsyncGenerator[Any, None]:
        try:
            async with aclosing(continuation(request, context)) as messages:
                async for message in messages:
                    yield message
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        self.ended.append("")


class Twice(AroundStart):
    async def intercept_unary_unary(self, continuation: Any, request: Any, context: CallContext) -> Any:
        try:
            return await continuation(request, context)
        except RpcError:
            return await continuation(request, context)


def fault() -> RpcError:
    return RpcError(StatusCode.UNAVAILABLE, "not now")


def test_a_stream_is_a_plain_generator() -> None:
    transport, passing = CountingLeaf(), Passing()
    assert list(Channel(transport, [passing]).unary_stream(FIND_NOTES, None)) == [0, 1, 2, 3, 4]
    assert (transport.closed, passing.ended) == (1, [""])


def test_closing_early_closes_all_the_way_down() -> None:
    transport, passing = CountingLeaf(), Passing()
    with closing(Channel(transport, [passing]).unary_stream(FIND_NOTES, None)) as stream:
        assert next(stream) == 0
        assert transport.closed == 0
    assert (transport.closed, passing.ended) == (1, ["GeneratorExit"])


def test_a_stream_that_is_dropped_is_closed() -> None:
    transport = CountingLeaf()
    stream = Channel(transport, [Passing()]).unary_stream(FIND_NOTES, None)
    next(stream)
    del stream
    assert transport.closed == 1


async def test_closing_early_in_asyncio() -> None:
    transport, passing = CountingLeaf(), Passing()
    async with aclosing(AsyncChannel(transport, [passing]).unary_stream(FIND_NOTES, None)) as stream:
        assert await anext(stream) == 0
    assert (transport.closed, passing.ended) == (1, ["GeneratorExit"])


def test_a_stream_that_was_never_begun_sends_nothing() -> None:
    transport = CountingLeaf()
    Channel(transport).unary_stream(FIND_NOTES, None).close()
    assert transport.calls == 0


@pytest.mark.parametrize("wait", [asyncio.sleep, lambda _: asyncio.get_running_loop().create_future()])
def test_a_foreign_await_is_named_and_runs_finally_blocks(wait: Any) -> None:
    ended = []

    async def stream() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await wait(0)
            yield 2
        finally:
            ended.append(True)

    plain = driven(stream())
    assert next(plain) == 1
    with pytest.raises(ForeignAwaitError, match=r"only its continuation and context\.runtime"):
        next(plain)
    assert ended == [True]


def test_the_deadline_covers_what_the_reader_does() -> None:
    class Clock(SyncRuntime):
        time = 0.0

        def monotonic(self) -> float:
            return self.time

    clock = Clock()
    stream = Channel(CountingLeaf(), runtime=clock, timeout=10).unary_stream(FIND_NOTES, None)
    assert next(stream) == 0
    clock.time = 10.0
    with pytest.raises(RpcError) as caught:
        next(stream)
    assert caught.value.code is StatusCode.DEADLINE_EXCEEDED


def test_a_stream_is_tried_again_until_its_first_message() -> None:
    transport = CountingLeaf(fault())
    assert list(Channel(transport, [Twice()]).unary_stream(FIND_NOTES, None)) == [0, 1, 2, 3, 4]
    assert (transport.calls, transport.closed) == (2, 2)


def test_not_after_it() -> None:
    class Breaking(CountingLeaf):
        async def unary_stream(self, request: Any, context: CallContext) -> AsyncGenerator[Any, None]:
            self.calls += 1
            yield 1
            raise fault()

    transport = Breaking()
    stream = Channel(transport, [Twice()]).unary_stream(FIND_NOTES, None)
    assert next(stream) == 1
    with pytest.raises(RpcError, match="not now"):
        next(stream)
    assert transport.calls == 1


def test_requests_of_a_list_are_sent_again_and_others_are_not() -> None:
    requests = [PutNoteRequest(owner=str(n)) for n in range(3)]
    transport = CountingLeaf(fault())
    assert len(list(Channel(transport, [Twice()]).stream_stream(PUT_NOTE, requests))) == 3
    assert [request.owner for request in transport.taken] == ["0", "0", "1", "2"]
    transport = CountingLeaf(fault())
    with pytest.raises(RpcError, match="not now"):
        list(Channel(transport, [Twice()]).stream_stream(PUT_NOTE, iter(requests)))
    assert [request.owner for request in transport.taken] == ["0"]


def test_requests_are_looked_at() -> None:
    with pytest.raises(RpcError, match=r"requests\[1\] must be a PutNoteRequest"):
        list(Channel(CountingLeaf()).stream_stream(PUT_NOTE, [PutNoteRequest(), GetNoteRequest()]))
    with pytest.raises(RpcError, match="requests must be an iterable"):
        list(Channel(CountingLeaf()).stream_stream(PUT_NOTE, 7))  # type: ignore[arg-type]  # that is the point


def test_a_leaf_without_streams_says_so() -> None:
    class Small:
        async def unary_unary(self, request: Any, context: CallContext) -> Any:
            return None

        async def aclose(self) -> None:
            pass

    with pytest.raises(RpcError, match="carries no streams"):
        list(Channel(Small()).unary_stream(FIND_NOTES, None))


def test_the_callers_generator_is_closed() -> None:
    ended = []

    def source() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            ended.append(True)

    requests = Requests(source(), lambda message, _: message)
    assert drive(anext(aiter(requests))) == 0  # type: ignore[arg-type]  # an awaitable with send
    assert requests.spent
    drive(requests.aclose())
    assert ended == [True]


def test_batches_inline() -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(7):
            yield number

    found = list(driven(SyncRuntime().batches(items(), 3, 60, lambda: None)))
    assert found == [[0, 1, 2], [3, 4, 5], [6]]


async def test_batches_by_count_and_by_time() -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(5):
            yield number
        await asyncio.sleep(0.2)
        yield 5

    found = [batch async for batch in batches_in_asyncio(items(), 4, 0.02, lambda: None)]
    assert found == [[0, 1, 2, 3], [4], [5]]


async def test_batches_take_no_more_than_they_may() -> None:
    taken = 0

    async def items() -> AsyncIterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    async with aclosing(batches_in_asyncio(items(), 10, 1, lambda: None)) as batches:
        assert len(await anext(batches)) == 10
        await asyncio.sleep(0.01)
        assert taken <= 22


async def test_batches_end_as_their_source_does() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise LookupError("mine")

    batches = batches_in_asyncio(failing(), 10, 0.01, lambda: None)
    assert await anext(batches) == [1]
    with pytest.raises(LookupError, match="mine"):
        await anext(batches)

    async def stuck() -> AsyncIterator[int]:
        await asyncio.sleep(60)
        yield 1

    with pytest.raises(TimeoutError):
        await anext(batches_in_asyncio(stuck(), 10, 0.01, lambda: 0.02))
