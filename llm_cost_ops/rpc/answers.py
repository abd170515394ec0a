"""Whether a success says what was asked for.

Proxies, gateways and half-written servers answer 204, `{}` or an empty message to calls that they never
carried out. Each of these decodes to a message of defaults: a receipt without an id, a cost of 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from llm_cost_ops.rpc.method import Idempotency, MethodDescriptor

__all__ = ["empty_message", "missing_answer"]

# Stands beside an answer, and is none.
_BESIDE = frozenset(("meta",))


class _Shape(NamedTuple):
    """Where a method's answer is, and the list of its request that a list of the answer goes with."""

    part: str | None
    asked: str | None
    results: str | None


@lru_cache(maxsize=1024)
def _shape_of(method: MethodDescriptor[Any, Any]) -> _Shape:
    part = method.unwrap
    if part is None:
        return _Shape(None, None, None)
    kind = _struct(method.response.type, part)
    lists = _lists(method.request.type)
    if kind is None or "results" not in _lists(kind) or len(lists) != 1:
        return _Shape(part, None, None)
    return _Shape(part, lists[0], "results")


def _struct(message: type, name: str) -> type | None:
    """The message type of a field."""
    for field in _fields(message):
        if field.name == name:
            kinds = getattr(field.type, "types", (field.type,))
            return next((kind.cls for kind in kinds if isinstance(kind, msgspec.inspect.StructType)), None)
    return None


def _fields(message: type) -> tuple[msgspec.inspect.Field, ...]:
    info = msgspec.inspect.type_info(message)
    return info.fields if isinstance(info, msgspec.inspect.StructType) else ()


def _lists(message: type) -> list[str]:
    """The fields of a message that are lists of messages."""
    return [
        field.name
        for field in _fields(message)
        if isinstance(field.type, msgspec.inspect.ListType)
        and isinstance(field.type.item_type, msgspec.inspect.StructType)
    ]


@lru_cache(maxsize=1024)
def _defaults(message: Any) -> tuple[tuple[str, object], ...]:
    empty = message()
    names = (field.name for field in msgspec.structs.fields(message))
    return tuple((name, getattr(empty, name)) for name in names if name not in _BESIDE | {"unknown_"})


def empty_message(method: MethodDescriptor[Any, Any], response: object) -> str:
    """What a message of a stream of answers lacks, in words; empty when it lacks nothing."""
    part = response
    name = method.unwrap or (method.http.response_body if method.http is not None else None)
    if name is not None:
        part = getattr(response, name)
    return f"it has nothing of what {method.name} answers with" if _says_nothing(part) else ""


def _says_nothing(message: object) -> bool:
    """Whether every field that this version knows has its default; what stands beside an answer is none."""
    if message is None:
        return True
    if isinstance(message, list):
        return not message or any(map(_says_nothing, message))
    kind: Any = type(message)
    return all(getattr(message, name) == default for name, default in _defaults(kind))


def missing_answer(
    method: MethodDescriptor[Any, Any], request: object, response: object, body: bytes | None = None
) -> str:
    """What a success lacks, in words; empty when it lacks nothing.

    With a JSON `body` a field that is there with its default counts as said: a cost of "0", a list of
    nothing. In protobuf nobody can tell it from one that is not there: an answer that is there, and empty,
    is one for a call that changes what is there (a report of no changes), and none for any other. A batch has
    one result per record.
    """
    shape = _shape_of(method)
    part = response if shape.part is None else getattr(response, shape.part)
    if _says_nothing(part):
        # Only now: this looks into the bytes again, and into the types, which takes longer than the call.
        inside = part is not None and part is not response
        stated = inside and _may_change_nothing(method) if body is None else _stated(method, body)
        if not stated:
            return f"it has nothing of what {method.name} answers with"
    if shape.asked is not None and shape.results is not None:
        asked, answered = len(getattr(request, shape.asked)), len(getattr(part, shape.results))
        if asked != answered:
            return f"it has {answered} {shape.results} for {asked} {shape.asked}"
    return ""


def _may_change_nothing(method: MethodDescriptor[Any, Any]) -> bool:
    return method.idempotency is Idempotency.IDEMPOTENT


def _stated(method: MethodDescriptor[Any, Any], body: bytes) -> bool:
    """Whether JSON names a field of the answer, and gives it a value."""
    try:
        decoded = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return False
    kind: type | None = method.response.type
    if method.unwrap is not None:
        kind = _struct(method.response.type, method.unwrap)
        decoded = decoded.get(method.unwrap, decoded) if isinstance(decoded, dict) else None
    elif any(field.name == "pagination" for field in _fields(method.response.type)):
        # A page of nothing, which may be bare, and may lack what it says about itself.
        return isinstance(decoded if isinstance(decoded, list) else decoded.get("data"), list)
    if kind is None or not isinstance(decoded, dict):
        return False
    names = {field.encode_name for field in msgspec.structs.fields(kind)} - _BESIDE
    return any(decoded.get(name) not in (None, "", [], {}) for name in names)
