"""What a forked child must not keep: calls under way belong to threads that only the parent has."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["Forgetful", "forget_in_children"]


class Forgetful(Protocol):
    """Something that knows of calls under way."""

    def forget(self) -> None:
        """Start again without calls under way, and with locks that nobody holds."""


_known: WeakSet[Forgetful] = WeakSet()


def forget_in_children(owner: Forgetful) -> None:
    """Have `owner.forget()` called in every child that this process forks, while it lives."""
    _known.add(owner)


def _forget() -> None:
    for owner in list(_known):
        owner.forget()


os.register_at_fork(after_in_child=_forget)
