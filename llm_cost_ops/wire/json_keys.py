"""Keys that come twice in a JSON object, of which every decoder keeps one and forgets the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

__all__ = ["REPEATED", "Path", "no_key_lost", "path_text", "repeated_keys"]

Path = tuple[str | int, ...]

REPEATED = "is given more than once"
_MAX_SHOWN = 40


class _Twice(list[tuple[str, Any]]):
    """An object with a key that comes twice: its pairs."""


def no_key_lost(data: bytes, written: bytes) -> bool:
    """Whether JSON and what was made of it have as many keys, as far as a quick look can tell."""
    return data == written or (b"\\" not in data and data.count(b":") == written.count(b":"))


def repeated_keys(data: bytes, written: bytes | None = None) -> list[Path]:
    """The paths of keys that come more than once in their object, one for each element at the top.

    `data` is JSON that has been decoded. `written` may be the JSON of the decoded value, with no field that
    did not come. Where that has as many colons no key was lost, and the search is spared, which takes three
    times as long as decoding. A key has one colon, and a text, unless it has escapes, the same ones in both;
    a time may lose some. Raises RecursionError where objects lie too deep in each other.
    """
    if written is not None and no_key_lost(data, written):
        return []
    some = False

    def read(pairs: list[tuple[str, object]]) -> object:
        nonlocal some
        fields = dict(pairs)
        if len(fields) == len(pairs):
            return fields
        some = True
        return _Twice(pairs)

    # The numbers don't matter, and to read a long one takes long. An item that is not UTF-8 has its error.
    tree = json.loads(data.decode(errors="replace"), object_pairs_hook=read, parse_int=len, parse_float=len)
    return list(_paths(tree)) if some else []


def _paths(tree: object) -> Iterator[Path]:
    reported: set[Path] = set()
    path: list[str | int] = []
    left = [_steps(tree)]
    while left:
        found = next(left[-1], None)
        if found is None:
            left.pop()
            del path[-1:]
            continue
        step, value, again = found
        path.append(step)
        if again and tuple(path[:2]) not in reported:
            reported.add(tuple(path[:2]))
            yield tuple(path)
        left.append(_steps(value))


def _steps(value: object) -> Iterator[tuple[str | int, object, bool]]:
    if isinstance(value, _Twice):
        seen: set[str] = set()
        for name, each in value:
            yield name, each, name in seen
            seen.add(name)
    elif isinstance(value, dict):
        yield from ((name, each, False) for name, each in value.items())
    elif isinstance(value, list):
        yield from ((index, each, False) for index, each in enumerate(value))


def path_text(path: Path) -> str:
    """A path in the words of an error, such as "records[3].metadata.a"."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if len(step) <= _MAX_SHOWN else step[:_MAX_SHOWN] + "…"
            text += f".{name}" if text else name
    return text
