"""Threads beside the caller's, where they can be had.

From Python 3.12 on an interpreter that is ending starts none: from its functions of atexit on, in 3.12.0 and
3.12.1 already once the main thread has ended. A process that may have no more threads is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import concurrent.futures

# asyncio and concurrent.futures are imported where they are used, as in fifo.py.

__all__ = ["beside", "is_ending", "outside_of_loops", "started"]

T = TypeVar("T")


def started(work: Callable[[], object], name: str) -> threading.Thread | None:
    """A daemon thread that does `work`; None where none can be started: the caller does it then."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def is_ending() -> bool:
    """Whether the main thread has ended, so that pools of threads take nothing any more."""
    return not threading.main_thread().is_alive()


async def beside(function: Callable[..., T], *args: object) -> T:
    """Run what blocks in a thread of its own, and wait for it in asyncio; in this one, where none starts.

    asyncio.to_thread raises once the main thread has ended.
    """
    import asyncio
    from concurrent.futures import Future

    done: concurrent.futures.Future[T] = Future()
    done.set_running_or_notify_cancel()  # who waits may go away: what runs does not

    def run() -> None:
        try:
            done.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001  # raised by who waits
            done.set_exception(error)

    if started(run, "llm-cost-ops-beside") is None:
        run()
        return done.result()
    return await asyncio.wrap_future(done)


@contextmanager
def outside_of_loops() -> Iterator[None]:
    """In it this thread may run an event loop, although it is in one: that stands still meanwhile."""
    from asyncio import _get_running_loop, _set_running_loop

    running = _get_running_loop()
    _set_running_loop(None)
    try:
        yield
    finally:
        _set_running_loop(running)
