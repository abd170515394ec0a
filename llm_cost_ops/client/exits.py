"""What is closed when the process ends, also one that multiprocessing forked."""

from __future__ import annotations

import atexit
import sys
import time
from typing import Protocol
from weakref import WeakSet

from llm_cost_ops.rpc.forks import forget_in_children, living

__all__ = ["close_at_exit", "close_in_workers", "closed", "keep_until_exit"]


class Closing(Protocol):
    """Something that has work left when the process ends."""

    def close_at_exit(self, began: float) -> None:
        """Do it, in the time that there is since `began` of time.monotonic()."""


_open: WeakSet[Closing] = WeakSet()
# Those of them that live until then.
_kept: list[Closing] = []
# When the end began, of time.monotonic(), once it has.
_ending: list[float] = []


class _Workers:
    """Whether multiprocessing knows of this process's end; a child begins without."""

    registered = False

    def forget(self) -> None:
        """In a forked child: it was the parent that did."""
        self.registered = False


_workers = _Workers()
forget_in_children(_workers)


def close_at_exit(owner: Closing) -> None:
    """Have `owner.close_at_exit()` called at the end of the process, if it lives then.

    At once, where that was done already: what atexit calls later may begin something.
    """
    if _ending:
        owner.close_at_exit(_ending[0])
    else:
        _open.add(owner)


def keep_until_exit(owner: Closing) -> None:
    """Have `owner`, which nobody else keeps, live until the end. Takes no lock."""
    _kept.append(owner)


def closed(owner: Closing) -> None:
    """It is closed already."""
    _open.discard(owner)


def close_in_workers() -> None:
    """For a process that has something to close: what multiprocessing starts runs nothing of atexit's.

    In others multiprocessing may end before what else is called at the end, and may record.
    """
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is None or _workers.registered or not multiprocessing.process.parent_process():
        return
    _workers.registered = True
    multiprocessing.Finalize(None, _close_all, exitpriority=0)


def _close_all() -> None:
    _ending.append(time.monotonic())
    for owner in living(_open):
        owner.close_at_exit(_ending[0])


atexit.register(_close_all)
