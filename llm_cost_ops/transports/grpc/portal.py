"""The portal: an event loop in a thread of its own, for sync code that needs asyncio's sockets."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

from llm_cost_ops.rpc.dropped import ends_soon, when_dropped

__all__ = ["Portal"]

T = TypeVar("T")

# What the loop's own deadline gets on top before the waiting thread gives up on the loop.
SLACK = 1.0


class Portal:
    """Runs coroutines in a daemon thread, which starts with the first one.

    Threads may share it. It belongs to the process that made it: after a fork the child makes its
    own. `close` never waits long, and an interpreter that exits does not wait for it at all. The thread
    does not keep the portal: it ends with one that is collected.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._calls = _Calls(self._lock)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Wait until `work()` is done in the loop's thread, and return or raise what it did.

        `work` keeps deadlines itself. When it does not come back `timeout` seconds from now and a
        moment later, it is cancelled, and builtin TimeoutError raised. Raises RuntimeError once the
        portal is closed.
        """
        call = _Call(work)
        with self._lock:
            loop = self._running()
            self._calls.waiting.append(call)
            if len(self._calls.waiting) == 1:  # else the loop is already being woken, and takes all of them
                loop.call_soon_threadsafe(self._calls.begin)
        try:
            return call.wait(None if timeout is None else timeout + SLACK)
        except BaseException:
            # Also a KeyboardInterrupt: nobody waits any more.
            if not call.done:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(call.cancel)
            raise

    def close(self, timeout: float = 2.0) -> None:
        """Cancel what runs, and end the thread; when it takes over `timeout` seconds, leave it behind."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        _stop(loop)
        if thread is not threading.current_thread():
            thread.join(timeout)

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        """Begin `work()` in the loop's thread; cancelling the future cancels it. RuntimeError when closed."""
        with self._lock:
            return asyncio.run_coroutine_threadsafe(work(), self._running())

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise RuntimeError("the portal is closed")
        if self._loop is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_serve, args=(loop, self._calls), name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the process may have no more threads
                loop.close()
                raise
            self._loop, self._thread = loop, thread
            when_dropped(self, partial(_drop, loop, thread))
        return self._loop


def _drop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    ends_soon(thread)
    _stop(loop)


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(loop.stop)


def _serve(loop: asyncio.AbstractEventLoop, calls: _Calls) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        calls.begin()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            # A task that does not end when it is cancelled is left behind.
            loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


class _Calls:
    """The calls that wait for the loop. It knows them without the portal, which it must not keep."""

    def __init__(self, lock: threading.RLock) -> None:
        self.waiting: deque[_Call[Any]] = deque()
        self._lock = lock

    def begin(self) -> None:
        with self._lock:
            calls, self.waiting = self.waiting, deque()
        for call in calls:
            call.begin()


class _Call(Generic[T]):
    """What a thread waits for: a plain lock, since a Future's condition takes several times as long."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.done = False
        self._work = work
        self._answered = threading.Lock()
        self._answered.acquire()
        self._task: asyncio.Task[None] | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    def wait(self, seconds: float | None) -> T:
        if not self._answered.acquire(timeout=-1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)):
            raise TimeoutError
        if isinstance(self._error, asyncio.CancelledError):
            raise RuntimeError("the portal was closed")
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # it refers to this frame
        result: T = self._result
        return result

    # In the loop's thread.

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            self._result = await self._work()
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._answer()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not self.done:  # it was cancelled before it began
            self._error = asyncio.CancelledError()
            self._answer()

    def _answer(self) -> None:
        self.done = True
        self._answered.release()
