"""What validators call for a value that their quick look did not pass, and what refuses unknown fields.

Each check takes the value, the field's name and its rules, and adds to the violations in a user's words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from llm_cost_ops.rpc.status import Violation
from llm_cost_ops.wire.decimals import plain
from llm_cost_ops.wire.open_enum import OpenEnum

__all__ = [
    "EMPTY",
    "WRONG_VALUE",
    "ZERO",
    "check_between",
    "check_bytes",
    "check_decimal",
    "check_entries",
    "check_enum",
    "check_float",
    "check_instance",
    "check_int",
    "check_items",
    "check_json",
    "check_messages",
    "check_one_of",
    "check_text",
    "check_undecoded",
    "entry",
    "missing",
    "nearest",
    "no_member",
    "plain_texts",
    "refuse_unknown",
    "relocate",
]

# The one empty string and the one zero of the interpreter: what an unset field holds.
EMPTY = ""
ZERO = 0

# What a value of a wrong type or range raises when it is compared, added or asked: Decimal("NaN") an
# ArithmeticError, an array a ValueError, and a dict KeyError for a slice, which is a key from Python 3.13 on.
WRONG_VALUE = (TypeError, AttributeError, ValueError, ArithmeticError, LookupError)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_SHOWN = 40
_MAX_NAME = 64
# What other APIs call a record's fields, where the spelling is nearer to another field.
_ELSEWHERE = {
    "prompttokens": "input_tokens",
    "inputtokencount": "input_tokens",
    "completiontokens": "output_tokens",
    "outputtokencount": "output_tokens",
    "cachedinputtokens": "cached_tokens",
    "cachereadtokens": "cached_tokens",
    "cachereadinputtokens": "cached_tokens",
    "cachecreationinputtokens": "cache_write_tokens",
    "cachecreationtokens": "cache_write_tokens",
    "model": "model_id",
    "organization": "organization_id",
    "project": "project_id",
    "user": "user_id",
    "cost": "reported_cost",
    "created": "timestamp",
}
_WORDS = {
    datetime: "a datetime",
    timedelta: "a timedelta",
    list: "a list",
    dict: "a dict",
    bytes: "bytes",
    bool: "True or False",
}

Violations = list[Violation]


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        text = str(value)  # an enum's member is a text, and shows itself otherwise
        return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")
    if value is None or isinstance(value, int | float | Decimal | datetime):
        text = str(value)
        return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
    return f"of type {type(value).__name__}"


def _a(kind: type[object]) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def relocate(violations: Violations, start: int, path: str) -> None:
    """Put a path in front of the fields of the violations from `start` on."""
    for index in range(start, len(violations)):
        field, description = violations[index]
        dot = "." if field and not field.startswith("[") else ""
        violations[index] = Violation(f"{path}{dot}{field}", description)


def check_between(groups: Iterable[Iterator[tuple[str, str]]], path: str, violations: Violations) -> None:
    """Add the fields and rules that each group of rules between fields finds; `path` is before each field.

    A field that is among the violations already is not named again. A group ends where it comes to a
    value of a wrong type or range, which the rules of single fields name.
    """
    reported = {field for field, _ in violations}
    for group in groups:
        try:
            for field, rule in group:
                at = f"{path}.{field}" if path else field
                if at not in reported:
                    violations.append(Violation(at, rule))
        except WRONG_VALUE:
            continue


def missing(name: str, violations: Violations) -> None:
    """A required field that is not there."""
    violations.append(Violation(name, "is required"))


def check_text(
    value: object,
    name: str,
    violations: Violations,
    max_length: int | None = None,
    required: bool = False,
    multiline: bool = False,
) -> None:
    """A string."""
    if not isinstance(value, str):
        violations.append(Violation(name, f"must be a string, not {_shown(value)}"))
        return
    if required and not value:
        missing(name, violations)
    if max_length is not None and len(value) > max_length:
        violations.append(Violation(name, f"must have at most {max_length} characters, not {len(value)}"))
    if _SURROGATE.search(value):
        violations.append(Violation(name, "must be Unicode text; it has a lone surrogate"))
    if not multiline and _CONTROL.search(value):
        violations.append(Violation(name, f"must not have control characters: {_shown(value)}"))


def check_int(
    value: object, name: str, violations: Violations, low: int, high: int, required: bool = False
) -> None:
    """An integer from `low` to `high`; a bool is not one."""
    if isinstance(value, bool) or not isinstance(value, int):
        violations.append(Violation(name, f"must be an integer, not {_shown(value)}"))
    elif value < low:
        violations.append(Violation(name, f"must be {low} or more, not {_shown(value)}"))
    elif value > high:
        violations.append(Violation(name, f"must be {high} or less, not {_shown(value)}"))
    elif required and not value:
        missing(name, violations)


def check_float(
    value: object, name: str, violations: Violations, low: int | None = None, high: int | None = None
) -> None:
    """A float, or an integer in its place."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        violations.append(Violation(name, f"must be a number, not {_shown(value)}"))
    elif low is not None and not value >= low:
        violations.append(Violation(name, f"must be {low} or more, not {_shown(value)}"))
    elif high is not None and not value <= high:
        violations.append(Violation(name, f"must be {high} or less, not {_shown(value)}"))


def check_decimal(
    value: object,
    name: str,
    violations: Violations,
    low: int | None = None,
    high: int | None = None,
    required: bool = False,
) -> None:
    """A Decimal that the grammar of wire.decimals can hold."""
    if isinstance(value, float):
        violations.append(Violation(name, f"must be a Decimal or a str such as '{value!r}', not a float"))
        return
    if not isinstance(value, Decimal):
        violations.append(Violation(name, f"must be a decimal such as 0.015, not {_shown(value)}"))
        return
    try:
        plain(value)
    except ValueError as error:
        violations.append(Violation(name, f"{error}, not {_shown(value)}"))
        return
    if required and not value:
        missing(name, violations)
    elif low is not None and value < low:
        violations.append(Violation(name, f"must be {low} or more, not {_shown(value)}"))
    elif high is not None and value > high:
        violations.append(Violation(name, f"must be {high} or less, not {_shown(value)}"))


def check_enum(
    value: object, name: str, violations: Violations, enum: type[OpenEnum], required: bool = False
) -> None:
    """A member of an enum: one that this version knows, or a number, which a newer version may know."""
    if not isinstance(value, enum) or value.number is None:
        violations.append(Violation(name, no_member(value, enum)))
    elif required and value.number == 0:
        missing(name, violations)


def no_member(value: object, enum: type[OpenEnum]) -> str:
    """Why a value is not a member of an enum, and which member may have been meant."""
    if isinstance(value, str) and enum(value).known:
        return f"must be {enum.__name__}.{enum(value).name}, not the text {value!r}"
    known = [member.value for member in enum if member.number]
    words = f"must be one of {', '.join(known)}, not {_shown(value)}"
    if isinstance(value, str) and len(value) <= _MAX_SHOWN:
        from difflib import get_close_matches

        meant = get_close_matches(value.lower(), known, 1)
        words += f": did you mean {meant[0]!r}?" if meant else ""
    return words


def check_bytes(value: object, name: str, violations: Violations, max_length: int | None = None) -> None:
    """Bytes."""
    if isinstance(value, bytes) and max_length is not None and len(value) > max_length:
        violations.append(Violation(name, f"must have at most {max_length} bytes, not {len(value)}"))
    check_instance(value, name, violations, bytes)


def check_instance(value: object, name: str, violations: Violations, kind: type[object]) -> None:
    """An instance of a class."""
    if not isinstance(value, kind):
        words = _WORDS.get(kind) or _a(kind)
        if kind is datetime and isinstance(value, str):
            words += ", or in a keyword text such as 2026-01-31T12:00:00Z"
        violations.append(Violation(name, f"must be {words}, not {_shown(value)}"))


def check_json(value: object, name: str, violations: Violations, kind: type[object] = dict) -> None:
    """A JSON object (or, for `kind` list, an array)."""
    if not isinstance(value, kind):
        what = "object (a dict)" if kind is dict else "array (a list)"
        violations.append(Violation(name, f"must be a JSON {what}, not {_shown(value)}"))
        return
    try:
        msgspec.json.encode(value)
    except RecursionError:
        violations.append(Violation(name, "must be JSON, and is nested too deep"))
    except (TypeError, ValueError, OverflowError) as error:
        violations.append(Violation(name, f"must be JSON: {str(error)[:200]}"))


def check_items(
    value: object, name: str, violations: Violations, max_items: int | None = None, required: bool = False
) -> bool:
    """A list; whether its elements are to be checked."""
    if not isinstance(value, list):
        violations.append(Violation(name, f"must be a list, not {_shown(value)}"))
        return False
    return _counted(value, name, violations, max_items, required)


def check_messages(
    values: list[object],
    name: str,
    violations: Violations,
    kind: type[object],
    validate: Callable[[Any, str, Violations], None],
) -> None:
    """The elements of a list of messages. The path of one is made only when it has a violation."""
    for index, value in enumerate(values):
        start = len(violations)
        if type(value) is kind:
            validate(value, "", violations)
        else:
            check_instance(value, "", violations, kind)
        if len(violations) != start:
            relocate(violations, start, f"{name}[{index}]")


def check_entries(
    value: object, name: str, violations: Violations, max_items: int | None = None, required: bool = False
) -> bool:
    """A map; whether its entries are to be checked."""
    if not isinstance(value, dict):
        violations.append(Violation(name, f"must be a dict, not {_shown(value)}"))
        return False
    return _counted(value, name, violations, max_items, required)


def plain_texts(value: Any, kind: type[Any], max_items: int, max_length: int) -> bool:
    """Whether a look at all texts of a list or map together shows no fault; False where there may be one."""
    if type(value) is not kind or len(value) > max_items:
        return False
    try:
        joined = "".join([*value, *value.values()] if kind is dict else value)
    except TypeError:
        return False
    return len(joined) <= max_length and joined.isprintable()


def _counted(value: Any, name: str, violations: Violations, max_items: int | None, required: bool) -> bool:
    if required and not value:
        missing(name, violations)
    if max_items is not None and len(value) > max_items:
        violations.append(Violation(name, f"must have at most {max_items} items, not {len(value)}"))
        return False
    return True


def check_one_of(violations: Violations, members: Mapping[str, object]) -> None:
    """A oneof: at most one member is set."""
    given = [name for name, value in members.items() if value is not None]
    for name in given[1:]:
        violations.append(Violation(name, f"must not be set beside {given[0]}: only one of them may be"))


def check_undecoded(unknown: Any, path: str, violations: Violations) -> bool:
    """An element of an itemized list that could not be decoded: its error is the only violation."""
    if not unknown.error:
        return False
    violations.append(Violation(unknown.error_field, unknown.error))
    if path:
        relocate(violations, len(violations) - 1, path)
    return True


def entry(name: str, key: object) -> str:
    """The path of a map's entry."""
    text = str(key)
    return f"{name}[{text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + '…'}]"


def refuse_unknown(message: Any, path: str, violations: list[Violation], *, nested: bool = True) -> None:
    """Add a violation for each JSON field that its message, or with `nested` one in it, does not have.

    A misspelt field may be a count or a price: dropped in silence, it would make the cost wrong.
    Unknown fields of protobuf have no names, come from newer peers only, and are kept.
    """
    for where, found in _messages(message, path) if nested else [(path, message)]:
        unknown = found.unknown_
        if not unknown or not unknown.json:
            continue
        known = [info.encode_name for info in msgspec.structs.fields(found) if info.name != "unknown_"]
        for name in unknown.json:
            shown = name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "…"
            meant = nearest(name, known)
            rule = "is not a known field" + (f": did you mean {meant}?" if meant else "")
            violations.append(Violation(f"{where}.{shown}" if where else shown, rule))


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that may have been meant by another one, "" when none is near."""
    from difflib import get_close_matches

    if len(name) > _MAX_NAME:
        return ""
    plain = {candidate.replace("_", ""): candidate for candidate in known}
    wanted = name.replace("_", "").replace("-", "").lower()
    alias = _ELSEWHERE.get(wanted, "").replace("_", "")
    if alias in plain:
        return plain[alias]
    found = get_close_matches(wanted, plain, 1, 0.75)
    return plain[found[0]] if found else ""


def _messages(message: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, message
    for name in message.__struct_fields__:
        value = getattr(message, name)
        inner = f"{path}.{name}" if path else name
        if isinstance(value, msgspec.Struct):
            yield from _messages(value, inner)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if not isinstance(item, msgspec.Struct):
                    break
                yield from _messages(item, f"{inner}[{index}]")
