"""Reading values out of payloads: mappings, counts, moments, durations and money.

A payload is a dict, an object of a provider's SDK (pydantic or not), or a mixture of both. Objects
become dicts one level at a time and only where a normalizer looks, so long contents are not copied.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Context, Decimal

import msgspec

from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.wire.decimals import from_text
from llm_cost_ops.wire.json import to_utc

__all__ = [
    "MAX_NUMBER",
    "as_mapping",
    "count",
    "counted",
    "created_at",
    "duration_ms",
    "has",
    "items",
    "moment",
    "money",
    "section",
    "shallow",
    "text",
]

MAX_NUMBER = 2**63 - 1
_MAX_DIGITS = 19
# Earlier times are not times of a call: some servers send the seconds since they started.
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_FIRST_SECOND = int(_EARLIEST.timestamp())
# A Unix time above this is in milliseconds, microseconds or nanoseconds: in seconds it is the year 5138.
_MAX_SECONDS = 10**11
# What SDKs put where a field was not sent: openai's NotGiven and Omit, mistralai's Unset.
_NOT_SENT = frozenset({"NotGiven", "Omit", "Unset", "UnsetType"})
# Asked first: the name of a type is slow to get.
_JSON_TYPES = frozenset({int, str, dict, list, float, bool})
_DECIMAL_PLACES = Decimal("1e-18")
_MAX_MONEY = Decimal(10**18)
# Never the caller's decimal context.
_WIDE = Context(prec=80)
# The widest exponent of a number that is read; 10^-400 is below any amount.
_FINEST = 400


def shallow(value: object) -> dict[str, object] | None:
    """The fields of an object as a dict, its values untouched; None when it has no fields."""
    if isinstance(value, Mapping):
        return dict(value)
    kind = type(value)
    if kind.__name__ in _NOT_SENT:
        return None
    if hasattr(kind, "model_fields") and hasattr(value, "__pydantic_extra__"):
        return {**value.__dict__, **(value.__pydantic_extra__ or {})}
    for name in ("model_dump", "to_dict"):
        method = getattr(value, name, None)
        if callable(method):
            dumped = method()
            return dict(dumped) if isinstance(dumped, Mapping) else None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, (str, bytes, int, float, list, tuple)) or not hasattr(value, "__dict__"):
        return None
    return {name: item for name, item in vars(value).items() if not name.startswith("_")}


def as_mapping(value: object, path: str = "") -> dict[str, object]:
    """`value` as a dict; PayloadError when it is neither a mapping nor an object with fields."""
    if type(value) is dict:
        return value
    found = shallow(value)
    if found is None:
        raise PayloadError(path, f"expected an object, got {type(value).__name__}")
    return found


def section(payload: dict[str, object], key: str, path: str = "") -> dict[str, object] | None:
    """The object at `key` as a dict; None when it is absent, null or not sent. `path` is where it stands."""
    value = payload.get(key)
    if value is None or type(value) is dict:
        return value
    if type(value).__name__ in _NOT_SENT:
        return None
    return as_mapping(value, _below(path, key))


def items(payload: dict[str, object], key: str, path: str = "") -> list[dict[str, object]]:
    """The list of objects at `key`; empty when it is absent or null. `path` is where it stands."""
    value = payload.get(key)
    if value is None:
        return []
    if type(value) is list:
        # A loop: a generator takes as long to make as a few items to look at.
        for item in value:
            if type(item) is not dict:
                break
        else:
            return value
    elif type(value).__name__ in _NOT_SENT:
        return []
    if not isinstance(value, (list, tuple)):
        raise PayloadError(_below(path, key), f"expected a list, got {type(value).__name__}")
    return [as_mapping(item, f"{_below(path, key)}[{index}]") for index, item in enumerate(value)]


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def has(fields: dict[str, object], key: str) -> bool:
    """Whether something is stated at `key`: SDK objects have every key, with null where nothing is."""
    value = fields.get(key)
    if value is None:
        return False
    return type(value) in _JSON_TYPES or type(value).__name__ not in _NOT_SENT


def counted(fields: dict[str, object], key: str, path: str = "") -> int | None:
    """The count at `key`; None when it is absent or null, which is not 0 but not stated."""
    value = fields.get(key)
    if type(value) is int and 0 <= value <= MAX_NUMBER:
        return value
    if value is None or type(value).__name__ in _NOT_SENT:
        return None
    return _unusual_count(value, _below(path, key))


def count(fields: dict[str, object], key: str, path: str = "") -> int:
    """The count at `key`, 0 when it is absent or null.

    Floats that are whole numbers are counts too (Cohere sends them), and so are digits as text
    (protobuf's JSON writes 64-bit numbers so). Anything else that is not a whole number of
    0 to 2^63 - 1 raises PayloadError.
    """
    value = fields.get(key)
    if type(value) is int and 0 <= value <= MAX_NUMBER:
        return value
    if value is None:
        return 0
    return _unusual_count(value, _below(path, key))


def _unusual_count(value: object, path: str) -> int:
    if type(value).__name__ in _NOT_SENT:
        return 0
    if isinstance(value, str) and len(value) <= _MAX_DIGITS and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise PayloadError(path, f"expected a count, got {type(value).__name__}")
    if not Decimal(value).is_finite():
        raise PayloadError(path, f"expected a count, got {value}")
    if value < 0:
        raise PayloadError(path, f"a count cannot be negative, got {value}")
    if value > MAX_NUMBER:
        raise PayloadError(path, f"a count cannot exceed 2^63 - 1, got {value}")
    if value != int(value):
        raise PayloadError(path, f"a count cannot have a fraction, got {value}")
    return int(value)


def text(fields: dict[str, object], key: str) -> str:
    """The string at `key`, the name of an enum member there, or ""."""
    value = fields.get(key)
    if type(value) is str:
        return value
    if value is None:
        return ""
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, str) else value.name
    return value if isinstance(value, str) else ""


def moment(value: object, path: str) -> datetime | None:
    """A Unix time in seconds, an RFC 3339 string or a datetime, as a datetime in UTC.

    None and 0 mean that it was not given. A time without a zone is UTC.
    """
    if not value or type(value).__name__ in _NOT_SENT:
        return None
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            return to_utc(datetime.fromisoformat(value))
        if isinstance(value, datetime):
            return to_utc(value)
    except (ValueError, OverflowError, OSError) as error:
        raise PayloadError(path, f"not a time: {value!r:.80}") from error
    raise PayloadError(path, f"expected a time, got {type(value).__name__}")


def created_at(value: object) -> datetime | None:
    """The time that a payload states for itself; None if it can't be the time of a call.

    Servers send milliseconds, digits as text, or a clock that does not count from 1970. The counts
    beside such a time are good, so it is read as what it is, or left open: it never raises.
    """
    if type(value) is int and _FIRST_SECOND <= value <= _MAX_SECONDS:
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str) and value.isascii() and value.replace(".", "", 1).isdigit():
        value = float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        for _ in range(3):
            if value > _MAX_SECONDS:
                value /= 1000
    try:
        found = moment(value, "")
    except PayloadError:
        return None
    return found if found is None or found >= _EARLIEST else None


def money(value: object, path: str) -> Decimal | None:
    """An amount from a number or a decimal string, to 18 places; None when it was not given.

    Binary floats are read as they print, so 0.1 is exactly 0.1.
    """
    amount = _decimal(value, path)
    if amount is None:
        return None
    if amount >= _MAX_MONEY:
        raise PayloadError(path, f"an amount cannot reach 10^18, got {value!r:.40}")
    exponent = amount.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -18:
        amount = amount.quantize(_DECIMAL_PLACES, context=_WIDE)
    return amount


def duration_ms(value: object, path: str) -> int:
    """Seconds, as a number or a decimal string, in whole milliseconds (half to even); 0 if not given."""
    seconds = _decimal(value, path)
    if seconds is None:
        return 0
    if seconds > MAX_NUMBER // 1000:
        raise PayloadError(path, f"a duration cannot exceed 2^63 - 1 ms, got {value!r:.40} s")
    return int(_WIDE.multiply(seconds, 1000).to_integral_value(context=_WIDE))


def _decimal(value: object, path: str) -> Decimal | None:
    if value is None or type(value).__name__ in _NOT_SENT:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, str)):
        raise PayloadError(path, f"expected a number, got {type(value).__name__}")
    try:
        if isinstance(value, str):
            number = from_text(value)
        else:
            number = Decimal(repr(value) if isinstance(value, float) else value)
    except ValueError as error:
        raise PayloadError(path, f"{error}, got {value!r:.40}") from None
    if not number.is_finite() or number < 0 or (number and not -_FINEST <= number.adjusted() < _FINEST):
        raise PayloadError(path, f"expected a number of 0 or more, got {value!r:.40}")
    return number
