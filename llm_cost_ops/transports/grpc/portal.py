"""The portal: an event loop in a thread of its own, for sync code that needs asyncio's sockets."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

from llm_cost_ops.rpc.dropped import ends_soon, when_dropped
from llm_cost_ops.rpc.threads import outside_of_loops, started

__all__ = ["NoThreadError", "Portal"]

T = TypeVar("T")

# What the loop's own deadline gets on top before the waiting thread gives up on the loop.
SLACK = 1.0


class NoThreadError(RuntimeError):
    """There is no thread for the loop, and none can be started."""


class Portal:
    """Runs coroutines in a daemon thread, which starts with the first one.

    Threads may share it. It belongs to the process that made it: after a fork the child makes its
    own. `close` never waits long, and an interpreter that exits does not wait for it at all. The thread
    does not keep the portal: it ends with one that is collected.

    Where no thread can be started, as in an interpreter that is ending, each call runs the loop in its own
    thread, one after the other.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._calls = _Calls(self._lock)
        # Calls that run the loop in their own thread, or wait for that: it gets no other thread then.
        self._here = 0
        self._turn = threading.Lock()

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Wait until `work()` is done in the loop's thread, and return or raise what it did.

        `work` keeps deadlines itself. When it does not come back `timeout` seconds from now and a
        moment later, it is cancelled, and builtin TimeoutError raised. Raises RuntimeError once the
        portal is closed.
        """
        call = _Call(work)
        seconds = None if timeout is None else timeout + SLACK
        with self._lock:
            loop = self._running()
            here = self._thread is None
            self._here += here
            if not here:
                # In this order: for a call that waits the loop was woken, also with a KeyboardInterrupt here.
                if not self._calls.waiting:  # else it is already being woken, and takes all of them
                    loop.call_soon_threadsafe(self._calls.begin)
                self._calls.waiting.append(call)
        if here:
            try:
                return _run_here(loop, self._turn, work, seconds)
            finally:
                with self._lock:
                    self._here -= 1
        try:
            return call.wait(seconds)
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
        if loop is None:
            return
        if thread is None:
            if self._turn.acquire(timeout=timeout):
                try:
                    with outside_of_loops():
                        _end(loop)
                finally:
                    self._turn.release()
            return
        _stop(loop)
        if thread is not threading.current_thread():
            thread.join(timeout)

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        """Begin `work()` in the loop's thread; cancelling the future cancels it.

        RuntimeError when closed; NoThreadError where there is no such thread.
        """
        with self._lock:
            loop = self._running()
            if self._thread is None:
                raise NoThreadError("no thread can be started: the interpreter is ending")
            return asyncio.run_coroutine_threadsafe(work(), loop)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise RuntimeError("the portal is closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            when_dropped(self, partial(_stop, self._loop))
        loop = self._loop
        if self._thread is None and not self._here:
            try:
                self._thread = started(partial(_serve, loop, self._calls), self._name)
                if self._thread is not None:
                    when_dropped(self, partial(ends_soon, self._thread))
            except BaseException:
                # A KeyboardInterrupt: the thread may run.
                self._loop = None
                _stop(loop)
                raise
        return loop


def _run_here(
    loop: asyncio.AbstractEventLoop,
    turn: threading.Lock,
    work: Callable[[], Coroutine[Any, Any, T]],
    seconds: float | None,
) -> T:
    """Run the loop in this thread until `work()` is done, once nobody else does."""
    until = None if seconds is None else time.monotonic() + seconds
    if not turn.acquire(timeout=-1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)):
        raise TimeoutError
    try:
        if loop.is_closed():
            raise RuntimeError("the portal was closed")
        with outside_of_loops():
            task = loop.create_task(work())
            try:
                left = None if until is None else until - time.monotonic()
                return loop.run_until_complete(asyncio.wait_for(task, left))
            finally:
                task.cancel()  # a KeyboardInterrupt leaves it
    finally:
        turn.release()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(loop.stop)


def _serve(loop: asyncio.AbstractEventLoop, calls: _Calls) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        calls.begin()
    finally:
        _end(loop)


def _end(loop: asyncio.AbstractEventLoop) -> None:
    if loop.is_closed():
        return
    try:
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
