"""Messages of a stream between a sync caller's thread and the loop's thread that has the socket."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from llm_cost_ops.rpc.streams import step

__all__ = ["LATE", "Bridge"]

LATE: Any = object()
"""What there is in place of a message that did not come in time."""

_NOTHING: Any = object()


class Bridge:
    """At most `limit` messages wait in either direction; who brings more waits.

    The caller's requests are taken in its own thread, while it waits for an answer.
    """

    def __init__(self, requests: AsyncIterator[Any] | None, limit: int = 256) -> None:
        self._requests = requests
        self._limit = limit
        self._changed = threading.Condition()
        self._outgoing: deque[Any] = deque()
        self._incoming: deque[Any] = deque()
        self._ended = False
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Of the loop: there are requests, or no more; there is room for answers. Each is cleared under
        # the lock, and set by a callback that the caller's thread leaves behind: no wake-up is lost.
        self._work = asyncio.Event()
        self._room = asyncio.Event()

    # In the loop's thread.

    async def carry(self, stream: AsyncGenerator[Any, None]) -> None:
        """Take a stream's messages to the caller, to its end."""
        self._loop = asyncio.get_running_loop()
        try:
            async with aclosing(stream) as messages:
                async for message in messages:
                    while not self._arrived(message):
                        await self._room.wait()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    async def outgoing(self) -> AsyncGenerator[Any, None]:
        """The caller's requests."""
        while True:
            with self._changed:
                request = self._outgoing.popleft() if self._outgoing else _NOTHING
                ended = self._requests is None
                if request is _NOTHING:
                    self._work.clear()
                self._changed.notify_all()
            if request is not _NOTHING:
                yield request
            elif ended:
                return
            else:
                await self._work.wait()

    def _arrived(self, message: Any) -> bool:
        with self._changed:
            if len(self._incoming) >= self._limit:
                self._room.clear()
                return False
            self._incoming.append(message)
            self._changed.notify_all()
            return True

    # In the caller's thread.

    def next(self, seconds: float | None) -> Any:
        """The next answer; StopAsyncIteration at the end, and LATE after some seconds.

        Raises what ended the stream in the loop, or what the caller's iterable raised here.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            with self._changed:
                if self._incoming:
                    message = self._incoming.popleft()
                    if len(self._incoming) == self._limit - 1:
                        self._tell(self._room)
                    return message
                if self._ended:
                    raise self._failure or StopAsyncIteration
                if self._requests is None or len(self._outgoing) >= self._limit:
                    left = None if until is None else until - time.monotonic()
                    if left is not None and left <= 0:
                        return LATE
                    self._changed.wait(left)
                    continue
            self._offer(self._requests)

    def _offer(self, requests: AsyncIterator[Any]) -> None:
        """Take a request from the caller's iterable and leave it for the loop."""
        try:
            request = step(requests)
        except StopAsyncIteration:
            request = _NOTHING
        with self._changed:
            if request is _NOTHING:
                self._requests = None
            else:
                self._outgoing.append(request)
            if request is _NOTHING or len(self._outgoing) == 1:
                self._tell(self._work)

    def _tell(self, event: asyncio.Event) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(event.set)

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the loop is done with the stream, but not for long."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended, seconds)
