"""How a call's idempotency key gets into its request."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import is_not
from typing import Any

import msgspec

__all__ = ["fill_idempotency_key"]

# With a number behind it, it is no longer than a record's may be.
_MAX_BESIDE = 200


def fill_idempotency_key(*path: str) -> Callable[..., tuple[Any, str]]:
    """The `fill_key` function of a MethodDescriptor, for the attributes that lead to the key.

    A key that is given wins over the request's own; without either one is made. Where the path crosses a
    list, element i gets "<key>:i", unless it has a key of its own. What has to be changed is copied. Where
    a transport carries the key `beside` the request, elements are left without: the service makes the same
    keys. (Not for a key that no header could carry.)
    """
    if len(path) == 1:
        return partial(_fill, path[0])
    outer, name = path

    def fill(request: Any, key: str, make: Callable[[], str], beside: bool = False) -> tuple[object, str]:
        message = getattr(request, outer, None)
        filled: Any
        if isinstance(message, list):
            key = key or make()
            if beside and len(key) <= _MAX_BESIDE and key.isascii() and key.isprintable():
                return request, key
            filled = message.copy()
            for i, each in enumerate(message):
                # Written out: batches have thousands. The validator says what should have been a struct.
                if isinstance(each, msgspec.Struct) and not getattr(each, name, None):
                    filled[i] = copied = msgspec.structs.replace(each)
                    setattr(copied, name, f"{key}:{i}")
            changed = any(map(is_not, filled, message))
        else:
            filled, key = _fill(name, message, key, make)
            changed = filled is not message
        if changed:
            request = request.__copy__()
            setattr(request, outer, filled)
        return request, key

    return fill


def _fill(
    name: str, message: object, key: str, make: Callable[[], str], _beside: bool = False
) -> tuple[object, str]:
    if not isinstance(message, msgspec.Struct):
        # The validator says what it should have been.
        return message, key or make()
    own = getattr(message, name)
    if not key:
        key = own if own and isinstance(own, str) else make()
    if own != key:
        changed: Any = message
        message = changed.__copy__()
        setattr(message, name, key)
    return message, key
