"""The portal: an event loop in a thread of its own, for sync code that needs asyncio's sockets."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["Portal"]

T = TypeVar("T")

# What the loop's own deadline gets on top before the waiting thread gives up on the loop.
SLACK = 1.0


class Portal:
    """Runs coroutines in a daemon thread, which starts with the first one.

    Threads may share it. It belongs to the process that made it: after a fork the child makes its
    own. `close` never waits long, and an interpreter that exits does not wait for it at all.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Wait until `work()` is done in the loop's thread, and return or raise what it did.

        `work` keeps deadlines itself. When it does not come back `timeout` seconds from now and a
        moment later, it is cancelled, and builtin TimeoutError raised. Raises RuntimeError once the
        portal is closed.
        """
        future = self.start(work)
        try:
            return future.result(None if timeout is None else timeout + SLACK)
        except concurrent.futures.CancelledError:
            raise RuntimeError("the portal was closed") from None
        except BaseException:
            # Also a KeyboardInterrupt: nobody waits any more.
            future.cancel()
            raise

    def close(self, timeout: float = 2.0) -> None:
        """Cancel what runs, and end the thread; when it takes over `timeout` seconds, leave it behind."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(timeout)

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        """Begin `work()` in the loop's thread; cancelling the future cancels it. RuntimeError when closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the portal is closed")
            loop = self._loop or self._start()
            return asyncio.run_coroutine_threadsafe(work(), loop)

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(self._loop,), name=self._name, daemon=True)
        self._thread.start()
        return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            # A task that does not end when it is cancelled is left behind.
            loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
