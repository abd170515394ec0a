"""A lane: the connections of one event loop, and how a call gets on one of them, and off again."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import SplitResult

from llm_cost_ops.rpc.status import RpcError, client_closed
from llm_cost_ops.transports.grpc_connection import CallConnection
from llm_cost_ops.transports.grpc_dial import Target, dial
from llm_cost_ops.transports.grpc_exchange import GrpcExchange
from llm_cost_ops.transports.grpc_stream import StreamFailedError
from llm_cost_ops.transports.grpc_streaming import StreamingExchange

__all__ = ["Lane"]

# How often a call is sent again that the server did not touch, and the first wait before the second time.
MOST_RESENDS = 5
PAUSE = 0.01

# A connection that is closed says so to the loop within so many seconds, or is left to it.
LONGEST_CLOSE = 1.0


class _Channel:
    """A place for one connection. Callers share one connect; it ends when none of them waits."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._connection: CallConnection | None = None
        self._connecting: asyncio.Task[CallConnection] | None = None
        self._waiters = 0

    @property
    def load(self) -> int:
        used = self._connection.load if self._connection is not None and self._connection.usable else 0
        return used + self._waiters

    def ready(self) -> CallConnection | None:
        connection = self._connection
        if connection is None or not connection.usable:
            return None
        if connection.stale:
            connection.drain()
            return None
        return connection

    async def get(self) -> CallConnection:
        task = self._connecting or self._connect()
        self._waiters += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiters -= 1
            if not self._waiters and not task.done():
                self.stop()

    def stop(self) -> None:
        task, self._connecting = self._connecting, None
        if task is not None:
            task.cancel()

    def _connect(self) -> asyncio.Task[CallConnection]:
        self._connecting = asyncio.create_task(self._lane.dial())
        self._connecting.add_done_callback(self._connected)
        return self._connecting

    def _connected(self, task: asyncio.Task[CallConnection]) -> None:
        if self._connecting is task:
            self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._connection = task.result()


class Lane:
    """Up to `size` connections. A call takes the one with the fewest calls on it."""

    def __init__(
        self, target: Target, tls: ssl.SSLContext | None, proxy: SplitResult | None, size: int
    ) -> None:
        self._target = target
        self._tls = tls
        self._proxy = proxy
        self._open: set[CallConnection] = set()
        self._channels = [_Channel(self) for _ in range(size)]
        self._closed = False

    async def dial(self) -> CallConnection:
        """A new connection, known to the lane until it is gone."""
        connection = await dial(self._target, self._tls, self._proxy, self._open.discard)
        if not connection.gone.is_set():
            self._open.add(connection)
        return connection

    async def run(self, exchange: GrpcExchange) -> None:
        """Carry a call to the server and its answer back, by the deadline. Raises RpcError."""
        try:
            for resend in range(MOST_RESENDS + 1):
                self._check_open()
                try:
                    return await self._attempt(exchange)
                except StreamFailedError as error:
                    if error.processed or resend == MOST_RESENDS:
                        raise
                if resend:
                    async with asyncio.timeout(exchange.seconds_left()):
                        await asyncio.sleep(PAUSE * 2**resend)
        except RpcError:
            raise
        except Exception as error:
            raise exchange.failure(error) from error

    async def stream(self, exchange: StreamingExchange) -> AsyncGenerator[Any, None]:
        """Carry a call with streams; yield the answers as they come, by the deadline. Raises RpcError."""
        try:
            for resend in range(MOST_RESENDS + 1):
                self._check_open()
                try:
                    async with aclosing(self._streamed(exchange)) as messages:
                        async for message in messages:
                            yield message
                except StreamFailedError as error:
                    if error.processed or exchange.begun or resend == MOST_RESENDS:
                        raise
                else:
                    return
                if resend:
                    async with asyncio.timeout(exchange.seconds_left()):
                        await asyncio.sleep(PAUSE * 2**resend)
        except RpcError:
            raise
        except Exception as error:
            if exchange.broken is not None:
                raise exchange.broken from exchange.broken.__cause__  # the caller's own
            raise exchange.failure(error) from error

    async def _streamed(self, exchange: StreamingExchange) -> AsyncGenerator[Any, None]:
        connection = await self._entered(exchange)
        try:
            stream = connection.open(exchange.headers(), exchange.deadline)
            try:
                async with aclosing(exchange.messages(stream)) as messages:
                    async for message in messages:
                        yield message
            finally:
                connection.release(stream)
        finally:
            connection.leave()

    def _check_open(self) -> None:
        if self._closed:
            raise client_closed()

    def _least_loaded(self) -> _Channel:
        channels = self._channels
        return channels[0] if len(channels) == 1 else min(channels, key=lambda one: one.load)

    async def _entered(self, exchange: GrpcExchange) -> CallConnection:
        """A connection that has room for the call: from there on its stream keeps the deadline."""
        channel = self._least_loaded()
        connection = channel.ready()
        if connection is not None and connection.enter_now():
            return connection
        async with asyncio.timeout(exchange.seconds_left()):
            connection = connection or await channel.get()
            await connection.enter()
        return connection

    async def _attempt(self, exchange: GrpcExchange) -> None:
        connection = await self._entered(exchange)
        try:
            stream = connection.open(exchange.headers(), exchange.deadline)
            try:
                await exchange.run(stream)
            finally:
                connection.release(stream)
        finally:
            connection.leave()

    async def aclose(self) -> None:
        """Close every connection; calls in flight fail."""
        self._closed = True
        for channel in self._channels:
            channel.stop()
        connections = list(self._open)
        for connection in connections:
            connection.shut()
        if connections:
            waits = [asyncio.ensure_future(connection.gone.wait()) for connection in connections]
            _, late = await asyncio.wait(waits, timeout=LONGEST_CLOSE)
            for wait in late:
                wait.cancel()
