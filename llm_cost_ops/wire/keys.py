"""How a call's idempotency key gets into its request."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["keyed"]


def keyed(*path: str) -> Callable[[Any, str, Callable[[], str]], tuple[Any, str]]:
    """The `keyed` function of a MethodDescriptor, for the attributes that lead to the key.

    A key that is given wins over the request's own; without either one is made. Where the path crosses a
    list, element i gets "<key>:i", unless it has a key of its own. What has to be changed is copied.
    """

    def fill(request: Any, key: str, make: Callable[[], str]) -> tuple[Any, str]:
        key = key or _own(request, path) or make()
        return _filled(request, path, key, False), key

    return fill


def _own(message: Any, path: tuple[str, ...]) -> str:
    value = message
    for name in path:
        value = getattr(value, name, None)
    return value if isinstance(value, str) else ""


def _filled(message: Any, path: tuple[str, ...], key: str, keep: bool) -> Any:
    if not isinstance(message, msgspec.Struct):
        # The validator says what it should have been.
        return message
    name = path[0]
    value = getattr(message, name)
    filled: Any
    if len(path) == 1:
        filled = value if keep and value else key
        same = filled == value
    elif isinstance(value, list):
        filled = [_filled(each, path[1:], f"{key}:{i}", True) for i, each in enumerate(value)]
        same = all(map(_is, filled, value))
    else:
        filled = _filled(value, path[1:], key, keep)
        same = filled is value
    if same:
        return message
    changed = copy.copy(message)
    setattr(changed, name, filled)
    return changed


def _is(one: object, other: object) -> bool:
    return one is other
