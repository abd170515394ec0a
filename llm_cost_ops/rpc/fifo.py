"""First come, first served: the one queue for turns, who waits in it, and the queue in front of a server."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio

# asyncio and concurrent.futures are imported where they are used: a sync embedded client has no use for them.

__all__ = ["CallQueue", "Fifo", "Place", "RuntimeTurn", "TaskTurn", "ThreadTurn", "Turn"]


class Turn(Protocol):
    """Somebody who waits."""

    @property
    def granted(self) -> bool:
        """Whether the turn is theirs."""

    def grant(self) -> bool:
        """Wake them; False when they are gone, and the turn is for the next."""


class ThreadTurn:
    """A thread that waits. A plain lock: a Future's condition takes several times as long."""

    __slots__ = ("_lock", "granted")

    def __init__(self) -> None:
        self.granted = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def grant(self) -> bool:
        """May be called again, where it was interrupted."""
        self.granted = True
        with contextlib.suppress(RuntimeError):  # it is awake
            self._lock.release()
        return True

    def wait(self, seconds: float | None) -> None:
        """Wait for the turn, for at most so many seconds."""
        self._lock.acquire(timeout=-1 if seconds is None else max(0.0, seconds))


class TaskTurn:
    """A task that waits in the running event loop; any thread may grant it its turn."""

    __slots__ = ("_future", "_loop", "granted")

    def __init__(self) -> None:
        import asyncio

        self.granted = False
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def grant(self) -> bool:
        from asyncio import _get_running_loop

        if self._future.done():
            return False
        if _get_running_loop() is self._loop:
            self._future.set_result(None)
        else:
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop is closed
                return False
        self.granted = True
        return True

    def fail(self, error: Exception) -> None:
        """Have the wait end with an error. Only in its event loop."""
        if not self._future.done():
            self._future.set_exception(error)

    async def wait(self) -> None:
        """Wait for the turn. One that is cancelled may have been granted its turn meanwhile."""
        await self._future

    def _wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class RuntimeTurn:
    """A call that waits as its runtime does: `await runtime.wait(turn.future, seconds)`."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        from concurrent.futures import Future

        self.future: Future[None] = Future()

    @property
    def granted(self) -> bool:
        return self.future.done()

    def grant(self) -> bool:
        self.future.set_result(None)
        return True


class Place:
    """Somebody's place in a queue, which their runtime waits for as for a future: `runtime.wait(place)`."""

    __slots__ = ("_asleep", "_callback", "before", "behind", "granted", "owner")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.granted = False
        # The neighbours in the queue, while it is there.
        self.before: Any = None
        self.behind: Any = None
        self._asleep = threading.Lock()
        self._asleep.acquire()
        self._callback: Callable[[Place], object] | None = None

    def done(self) -> bool:
        return self.granted

    def result(self, timeout: float | None = None) -> None:
        if not self.granted:
            self._asleep.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        if not self.granted:
            raise TimeoutError

    def add_done_callback(self, callback: Callable[[Place], object]) -> None:
        self._callback = callback
        if self.granted:
            callback(self)

    def wake(self) -> None:
        """May be called again."""
        with contextlib.suppress(RuntimeError):  # it is awake
            self._asleep.release()
        if self._callback is not None:
            self._callback(self)


W = TypeVar("W", bound=Turn)


class Fifo(Generic[W]):
    """Turns in the order in which they joined.

    It has no lock: its owner holds one, or is used in one event loop only.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[W] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, turn: W) -> None:
        """Stand behind the last."""
        self._waiting.append(turn)

    def grant_next(self) -> bool:
        """Grant who waits longest the turn; False when nobody waits any more."""
        while self._waiting:
            if self._waiting.popleft().grant():
                return True
        return False

    def withdraw(self, turn: W) -> bool:
        """Wait no longer. True when the turn had been granted: whoever gives up then passes it on."""
        if not turn.granted and turn in self._waiting:
            self._waiting.remove(turn)
        return turn.granted

    def take_all(self) -> list[W]:
        """Empty the queue, and give who waited in it."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting


class CallQueue:
    """At most `limit` calls in flight; the others wait their turn, first come, first served.

    Threads and tasks of any event loop may share it. A server that refuses calls, since it has too many, is
    sent fewer at a time: each round of refusals halves how many are let in, down to one, and each call that
    is not refused adds a part of one, up to `limit`. That is the pace that all calls to one server share.

    An owner stands for one call. An interrupt, such as KeyboardInterrupt, may come at any point here: who
    gets one says that it leaves, and once more where that came out of `leave`.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.RLock()
        self._max = float(limit)
        self._window = float(limit)
        self._inside: set[object] = set()
        # Calls that were in flight when the window was halved: how they end says nothing about the new one.
        self._before_halving = 0
        self._waiting: OrderedDict[object, ThreadTurn | TaskTurn] = OrderedDict()

    @property
    def window(self) -> int:
        """How many calls are let in at a time, now."""
        return int(self._window)

    def enter(self, owner: object, seconds: float | None) -> bool:
        """Wait for a turn by blocking the thread; False when `seconds` pass first."""
        if self.enter_now(owner):
            return True
        turn = ThreadTurn()
        if self._joined(owner, turn):
            turn.wait(seconds)
            return self._is_let_in(owner, turn)
        return True

    async def enter_async(self, owner: object) -> None:
        """Wait for a turn in asyncio. A wait that is cancelled leaves the queue."""
        if self.enter_now(owner):
            return
        turn = TaskTurn()
        if self._joined(owner, turn):
            try:
                await turn.wait()
            except BaseException:
                self.leave(owner)
                raise
            self._is_let_in(owner, turn)

    def enter_now(self, owner: object) -> bool:
        """Take a turn, if there is one and nobody waits."""
        with self._lock:
            if self._waiting or len(self._inside) + 1 > self._window:
                return False
            self._inside.add(owner)
            return True

    def leave(self, owner: object, *, refused: bool = False) -> None:
        """Give the turn to who waits longest. `refused` says that the server had too many calls.

        Who has no turn waits for none any more.
        """
        with self._lock:
            self._waiting.pop(owner, None)
            if owner in self._inside:
                self._inside.discard(owner)
                if self._before_halving:
                    self._before_halving -= 1
                elif refused:
                    self._window = max(1.0, self._window / 2)
                    self._before_halving = len(self._inside)
                elif self._window < self._max:
                    self._window = min(self._max, self._window + 1 / self._window)
            self._admit()

    def close(self) -> None:
        """Let in everyone who waits, now and from now on: they are to find out that all is over."""
        with self._lock:
            self._window = self._max = math.inf
            self._admit()

    def _admit(self) -> None:
        # In this order: who was granted a turn is inside, although an interrupt comes before that is noted.
        while self._waiting and len(self._inside) + 1 <= self._window:
            owner, turn = next(iter(self._waiting.items()))
            if turn.grant():
                self._inside.add(owner)
            self._waiting.pop(owner, None)

    def _joined(self, owner: object, turn: ThreadTurn | TaskTurn) -> bool:
        with self._lock:
            if not self._waiting and len(self._inside) + 1 <= self._window:
                self._inside.add(owner)
                return False
            self._waiting[owner] = turn
            return True

    def _is_let_in(self, owner: object, turn: ThreadTurn | TaskTurn) -> bool:
        with self._lock:
            self._waiting.pop(owner, None)
            if turn.granted:
                self._inside.add(owner)
            return turn.granted
