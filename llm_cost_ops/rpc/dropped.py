"""What ends the threads of an object that was dropped without being closed."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from weakref import finalize

__all__ = ["ends_soon", "when_dropped"]

_MAX_WAIT = 1.0

_ending: dict[threading.Thread, None] = {}
_over = False


def when_dropped(owner: object, tell: Callable[[], object]) -> None:
    """Have `tell` called once `owner` is collected, unless the process ends. It must not wait for a lock."""
    finalize(owner, _drop, tell).atexit = False


def ends_soon(thread: threading.Thread) -> None:
    """Have the end of the process wait for a thread that is about to end, for a second at most.

    A daemon thread would be killed then, in the middle of letting go of its connections.
    """
    for ended in [each for each in list(_ending) if not each.is_alive()]:
        _ending.pop(ended, None)
    _ending[thread] = None


def _drop(tell: Callable[[], object]) -> None:
    if not _over:
        tell()


def _wait() -> None:
    global _over  # noqa: PLW0603 - once
    _over = True
    until = time.monotonic() + _MAX_WAIT
    for thread in list(_ending):
        if thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))


atexit.register(_wait)
