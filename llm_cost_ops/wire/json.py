"""Generated structs and their REST JSON: msgspec alone where it is exact, and a slow way where it is not."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from types import GenericAlias
from typing import Any, Generic, NamedTuple, TypeVar, cast, get_args, get_origin

import msgspec
from msgspec import UNSET, UnsetType

from llm_cost_ops.rpc.forks import quiesce_for_forks
from llm_cost_ops.wire.decimals import WireDecimal, from_json_number, from_text, plain
from llm_cost_ops.wire.errors import DecodeError, EncodeError
from llm_cost_ops.wire.json_keys import REPEATED, no_key_lost, path_text, repeated_keys
from llm_cost_ops.wire.json_types import BoolKey, IntKey, UInt64
from llm_cost_ops.wire.unknown import Unknown

__all__ = [
    "JsonCodec",
    "MessageStruct",
    "builtin_value",
    "decode_list_quickly",
    "decode_quickly",
    "decoder_of",
    "encode_exactly",
    "encode_quickly",
    "is_json",
    "several",
    "to_utc",
]

M = TypeVar("M")

_SCALARS = (str, int, float, bytes, datetime)
_LOCATED = re.compile(r"(.*?) - at (`key` in )?`\$\.?(.*)`", re.DOTALL)


class MessageStruct(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """A message."""

    unknown_: Unknown | UnsetType = msgspec.field(default=UNSET, name="?unknown")

    def to_json(self) -> str:
        """The message as the JSON text that REST has for it, unknown fields included.

        Decimals are strings, times RFC 3339, and enums the lower-case names of their values. Raises
        EncodeError, a ValueError, for a value that is not of its field's type.
        """
        return encode_exactly(self).decode()

    def to_dict(self) -> dict[str, Any]:
        """The same as a dict of plain values: dict, list, str, int, float, bool and None."""
        decoded: dict[str, Any] = msgspec.json.decode(encode_exactly(self))
        return decoded


class _NeedsExact(Exception):  # noqa: N818 - a signal, never seen outside
    """The fast way met what only the exact way can do."""


class JsonCodec(Generic[M]):
    """One message type as JSON.

    `encode` raises EncodeError and `decode` raises DecodeError. Unknown fields go to the `unknown_` slot, at
    any depth, and come back from there. `settled` tells in a quick look that every time is in UTC and every
    oneof has at most one member; `oneofs` are the JSON names of those members. The elements of the `itemized`
    fields, by JSON name, are decoded one by one once the whole can't be: a malformed one becomes an empty
    message with `unknown_.error`.
    """

    def __init__(
        self,
        type: type[M],
        *,
        settled: Callable[[Any], bool] | None = None,
        itemized: tuple[str, ...] = (),
        oneofs: Sequence[tuple[str, ...]] = (),
    ) -> None:
        self.type = type
        self._settled = settled
        self._itemized = itemized
        self._decoder: msgspec.json.Decoder[M] | None = None
        self._list_decoder: msgspec.json.Decoder[list[M]] | None = None
        self._exponents: re.Pattern[bytes] | None = None
        self.oneofs = oneofs
        _codecs[type] = self

    def encode(self, message: M) -> bytes:
        """The message as JSON."""
        data = self.encode_quickly(message)
        return encode_exactly(message) if data is None else data

    def encode_quickly(self, message: M) -> bytes | None:
        """As `encode`, but None for all that takes more than one pass in C, such as unknown fields."""
        try:
            data = _encoder.encode(message)
            if self._settled is None or self._settled(message):
                return self._without_exponents(data) if _has_exponent(data) else data
        except (_NeedsExact, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
            pass
        return None

    def _without_exponents(self, data: bytes) -> bytes:
        """The JSON of a message whose decimals may have been written as 1E-9, as the costs of short calls."""
        if self._exponents is None:
            self._exponents = _exponents_of(self.type)
        return self._exponents.sub(_plain_decimal, data)

    def decode(self, data: bytes, *, unique: bool = False) -> M:
        """The message that JSON holds.

        A key that comes twice in an object counts the last time; with `unique` it is an error, for which
        every message in the type must be one that omits its defaults.
        """
        message = self._decode(data)
        if unique:
            self._check_keys(data, message)
        return message

    def _decode(self, data: bytes) -> M:
        decoder = self._decoder
        if decoder is None:
            self._decoder = decoder = _plan(self.type).decoder
        try:
            message = decoder.decode(data)
            if self._settled is None or self._settled(message):
                return message
        except (_NeedsExact, ValueError, RecursionError) as error:
            if not (self._itemized or isinstance(error, _NeedsExact) or "unknown field" in str(error)):
                raise _decode_error(error) from None
        try:
            return cast("M", _graft(data, _plan(self.type), self._itemized))
        except (ValueError, RecursionError) as error:
            raise _decode_error(error) from None

    def decode_quickly(self, data: bytes) -> M | None:
        """As `decode` with `unique`, but None for all that takes more than one pass in C."""
        decoder = self._decoder
        if decoder is None:
            self._decoder = decoder = _plan(self.type).decoder
        try:
            message = decoder.decode(data)
            if self._settled is not None and not self._settled(message):
                return None
            return message if no_key_lost(data, _encoder.encode(message)) else None
        except (_NeedsExact, TypeError, ValueError, RecursionError):
            return None

    def decode_list_quickly(self, data: bytes) -> list[M] | None:
        """As `decode_quickly`, of a list of messages."""
        decoder = self._list_decoder
        if decoder is None:
            self._list_decoder = decoder = decoder_of(GenericAlias(list, (self.type,)), _read)
        try:
            messages = decoder.decode(data)
            if self._settled is not None and not all(map(self._settled, messages)):
                return None
            return messages if no_key_lost(data, _encoder.encode(messages)) else None
        except (_NeedsExact, TypeError, ValueError, RecursionError):
            return None

    def _check_keys(self, data: bytes, message: M) -> None:
        written = None
        try:
            written = _encoder.encode(message)
        except (_NeedsExact, TypeError, ValueError, RecursionError):
            pass
        try:
            paths = repeated_keys(data, written)
        except RecursionError as error:
            raise _decode_error(error) from None
        slots = _plan(self.type).slots
        for path in paths:
            at = path[1] if len(path) > 2 and path[0] in self._itemized else None
            if not isinstance(at, int):
                raise DecodeError(REPEATED, path_text(path))
            slot = slots[str(path[0])]
            items = getattr(message, slot.attribute)
            if slot.struct is not None and not (items[at].unknown_ and items[at].unknown_.error):
                items[at] = slot.struct(unknown_=Unknown(error=REPEATED, error_field=path_text(path[2:])))


def encode_quickly(message: object) -> bytes | None:
    """The message as JSON; None where only a codec's slower way can write it."""
    codec = _codecs.get(type(message))
    return None if codec is None else codec.encode_quickly(message)


def decode_quickly(type: type[M], data: bytes) -> M | None:
    """The message that JSON holds, no key of it twice; None where only a codec's slower way can tell."""
    codec: JsonCodec[M] | None = _codecs.get(type)
    return None if codec is None else codec.decode_quickly(data)


def decode_list_quickly(type: type[M], data: bytes) -> list[M] | None:
    """As `decode_quickly`, of a list of messages."""
    codec: JsonCodec[M] | None = _codecs.get(type)
    return None if codec is None else codec.decode_list_quickly(data)


def to_utc(value: datetime) -> datetime:
    """A time in UTC; one without an offset is in UTC already. OverflowError outside years 1 to 9999."""
    if value.tzinfo is UTC:
        return value
    if value.tzinfo is None or value.utcoffset() is None:
        return value.replace(tzinfo=UTC)
    return value.astimezone(UTC)


def is_json(data: bytes) -> bool:
    """Whether bytes are one JSON value."""
    try:
        _raw.decode(data)
    except (ValueError, RecursionError):
        return False
    return True


def several(*members: object) -> bool:
    """Whether more than one member of a oneof is set."""
    return len(members) - sum(member is None for member in members) > 1


def _has_exponent(data: bytes) -> bool:
    """Whether a decimal may have been written as 1E-9. The search for one letter is by far the fastest."""
    return b"E" in data and (b"E-" in data or b"E+" in data)


def _plain_decimal(found: re.Match[bytes]) -> bytes:
    return b'%s"%s"' % (found[1], plain(Decimal(found[2].decode())).encode())


def _exponents_of(struct: type[Any]) -> re.Pattern[bytes]:
    """What finds the decimals with an exponent in the JSON of a message, and nothing else.

    The names of fields are not in any text, where a quote has a backslash before it. _NeedsExact where a
    name does not tell: where maps or values of any type may have it too.
    """
    decimals: set[str] = set()
    others: set[str] = set()
    seen: set[object] = {struct}
    left = [struct]
    while left:
        for info in msgspec.structs.fields(left.pop()):
            shape, _, inner = _shape(info.type)
            inner = getattr(inner, "__origin__", inner)  # an int with bounds is one
            if inner is WireDecimal and shape == "one":
                decimals.add(info.encode_name)
            elif isinstance(inner, type) and issubclass(inner, msgspec.Struct) and shape != "map":
                left += [] if inner in seen else [inner]
                seen.add(inner)
            elif isinstance(inner, type) and issubclass(inner, _SCALARS) and shape != "map":
                others.add(info.encode_name)
            elif info.name != "unknown_":
                raise _NeedsExact
    if not decimals or decimals & others:
        raise _NeedsExact
    names = b"|".join(re.escape(name.encode()) for name in sorted(decimals))
    return re.compile(rb'("(?:%s)":)"(-?[0-9.]+E[+-][0-9]+)"' % names)


def encode_exactly(message: object) -> bytes:
    try:
        return _encoder.encode(_exact(message))
    except UnicodeEncodeError:
        raise EncodeError("has text with a lone surrogate, which is not Unicode") from None
    except RecursionError:
        raise EncodeError("is nested too deep") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise error if isinstance(error, EncodeError) else EncodeError(str(error)) from None


def _settle(message: object, plan: _Plan) -> None:
    """Put the times of one message, not of those in it, in UTC, and refuse two members of a oneof."""
    for name, slot in plan.slots.items():
        if slot.is_time:
            value = getattr(message, slot.attribute)
            try:
                setattr(message, slot.attribute, _exact(value))
            except OverflowError:
                raise DecodeError("is outside the years 1 to 9999 in UTC", name) from None
    for names in _codecs[type(message)].oneofs:
        given = [name for name in names if getattr(message, plan.slots[name].attribute) is not None]
        if len(given) > 1:
            raise DecodeError(f"must not be given beside {given[0]}: only one of them may be", given[1])


class _Slot(NamedTuple):
    """A field as the exact way sees it. `shape` is "one", "list" or "map"; `struct` its messages' type."""

    attribute: str
    shape: str
    key: Any
    struct: type[msgspec.Struct] | None
    is_decimal: bool
    is_time: bool
    omit: Any


class _Plan:
    """What the exact way knows of a struct."""

    def __init__(self, struct: type[Any]) -> None:
        self.decoder = decoder_of(struct, _read)
        self.slots: dict[str, _Slot] = {}
        omits = struct.__struct_config__.omit_defaults
        for info in msgspec.structs.fields(struct):
            if info.name == "unknown_":
                continue
            shape, key, inner = _shape(info.type)
            nested = inner if isinstance(inner, type) and issubclass(inner, msgspec.Struct) else None
            default = info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()
            omit = default if omits else _NeedsExact
            self.slots[info.encode_name] = _Slot(
                info.name, shape, key, nested, inner is WireDecimal, inner is datetime, omit
            )


_codecs: dict[type[Any], JsonCodec[Any]] = {}
_plans: dict[type[Any], _Plan] = {}


def _plan(struct: type[object]) -> _Plan:
    plan = _plans.get(struct)
    return plan or _plans.setdefault(struct, _Plan(struct))


class _OneAtATime:
    """A lock that nobody holds in a forked child, since a fork waits for it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        quiesce_for_forks(self)

    def before_fork(self, until: float) -> None:
        self.lock.acquire()

    def after_fork_in_parent(self) -> None:
        self.lock.release()

    def after_fork_in_child(self) -> None:
        self.lock.release()


_building = _OneAtATime()


def decoder_of(
    struct: type[object] | GenericAlias, hook: Callable[[Any, Any], object]
) -> msgspec.json.Decoder[Any]:
    """A decoder of a struct, or of a list of it. Whoever makes one after the start makes it here.

    msgspec shows what it knows of a struct to other threads before it has found all of it out: two that make
    decoders of structs that have a struct in common end the process with a segmentation fault.
    """
    with _building.lock:
        return msgspec.json.Decoder(struct, dec_hook=hook)


def _shape(hint: object) -> tuple[str, object, object]:
    members = [member for member in get_args(hint) if member is not type(None)]
    origin = get_origin(hint)
    if origin is list:
        return "list", None, members[0]
    if origin is dict:
        return "map", members[0], members[1]
    return "one", None, members[0] if len(members) == 1 else hint


def _read(kind: Any, value: Any) -> object:
    """Read what msgspec does not: its hook for types that it doesn't know."""
    if kind is WireDecimal:
        if isinstance(value, str):
            return from_text(value)
        if isinstance(value, float):
            # Its text is gone; the exact way reads it from the bytes.
            raise _NeedsExact
        if isinstance(value, int) and not isinstance(value, bool):
            return from_json_number(str(value)) if -(10**18) < value < 10**18 else from_json_number("")
        raise ValueError("expected a decimal, as a string or a number")
    if kind is UInt64:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64:
            return value
        raise ValueError(f"expected int from 0 to {2**64 - 1}")
    if kind is IntKey:
        return _int_key(value)
    if kind is BoolKey and value in ("true", "false"):
        return value == "true"
    raise ValueError("expected true or false" if kind is BoolKey else "unknown field")


def _int_key(text: str) -> int:
    if len(text) <= 20 and re.fullmatch(r"0|-?[1-9][0-9]*", text) and -(2**63) <= int(text) < 2**64:
        return int(text)
    raise ValueError("expected an integer as key")


def _mark(value: object) -> object:
    """Write what msgspec does not: its hook for types that it doesn't know."""
    if type(value) is Unknown:
        raise _NeedsExact
    return builtin_value(value, "can't write {} as JSON")


def builtin_value(value: object, refusal: str) -> str | int | datetime:
    """The text, integer or moment that a value of a class derived from str, int or datetime holds.

    Such as a pandas.Timestamp or a numpy.str_, which msgspec does not write. For any other value, and for a
    bool, which comes here as a key, it raises TypeError with `refusal`, which has the name of the type in the
    place of {}.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, datetime):
        return datetime.combine(value.date(), value.timetz())
    raise TypeError(refusal.format(type(value).__name__))


_encoder = msgspec.json.Encoder(enc_hook=_mark)
_objects: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw: msgspec.json.Decoder[msgspec.Raw] = msgspec.json.Decoder(msgspec.Raw)
_arrays: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])


def _decode_error(error: Exception) -> DecodeError:
    if isinstance(error, DecodeError):
        return error
    if isinstance(error, RecursionError):
        return DecodeError("is nested too deep")
    if isinstance(error, UnicodeDecodeError):
        return DecodeError("is not valid UTF-8")
    # A count that may be left out is still a count: "or null" would only lengthen what is said of it.
    text, path = str(error).replace(" | null", ""), ""
    located = _LOCATED.fullmatch(text)
    if located:
        text, path = f"{located[1]} as key" if located[2] else located[1], located[3]
    if "RFC3339" in text:
        text = "expected a time from the years 1 to 9999, such as 2026-01-31T12:00:00Z"
    words = text.replace("`", "").replace(" | ", " or ")
    return DecodeError(words[:1].lower() + words[1:] if words.startswith("Expected") else words, path)


def _graft(data: Any, plan: _Plan, itemized: tuple[str, ...] = ()) -> Any:
    """Decode an object field by field, with its unknown fields in `unknown_`."""
    flat: dict[str, msgspec.Raw] = {}
    nested: list[tuple[_Slot, str, Any]] = []
    unknown: dict[str, msgspec.Raw] = {}
    for name, raw in _objects.decode(data).items():
        slot = plan.slots.get(name)
        if slot is None:
            unknown[name] = _kept(raw, name)
        elif slot.struct is None or bytes(raw) == b"null":
            flat[name] = _with_plain_decimals(raw, slot, name) if slot.is_decimal else raw
        else:
            nested.append((slot, name, raw))
    message = plan.decoder.decode(msgspec.json.encode(flat))
    for slot, name, raw in nested:
        try:
            setattr(message, slot.attribute, _graft_nested(raw, slot, name in itemized))
        except (ValueError, RecursionError) as error:
            raise _located(error, name) from None
    _settle(message, plan)
    if unknown:
        message.unknown_ = Unknown(json=unknown)
    return message


def _kept(raw: Any, name: str) -> msgspec.Raw:
    """The JSON of a field that is not known. What is passed over has been checked for its form alone."""
    data = bytes(raw)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise _located(error, name) from None
    return msgspec.Raw(data)


def _graft_nested(raw: Any, slot: _Slot, itemized: bool) -> object:
    assert slot.struct is not None
    plan = _plan(slot.struct)
    if slot.shape == "one":
        return _graft(raw, plan)
    if slot.shape == "list":
        elements = []
        for index, element in enumerate(_arrays.decode(raw)):
            try:
                elements.append(_item(element, slot.struct) if itemized else _graft(element, plan))
            except (ValueError, RecursionError) as error:
                raise _located(error, f"[{index}]") from None
        return elements
    entries = {}
    for name, element in _objects.decode(raw).items():
        key = name if slot.key is str else _read(slot.key, name)
        try:
            entries[key] = _graft(element, plan)
        except (ValueError, RecursionError) as error:
            raise _located(error, f"[{name[:40]!r}]") from None
    return entries


def _item(raw: Any, struct: type[msgspec.Struct]) -> object:
    try:
        return _codecs[struct].decode(raw)
    except DecodeError as error:
        return struct(unknown_=Unknown(error=error.reason, error_field=error.path))


def _located(error: Exception, parent: str) -> DecodeError:
    found = _decode_error(error)
    found.within(parent)
    return found


def _with_plain_decimals(raw: Any, slot: _Slot, path: str) -> Any:
    """The value with each JSON number in it as the string of the same decimal."""
    try:
        if slot.shape == "list":
            return msgspec.Raw(msgspec.json.encode([_plain_number(r) for r in _arrays.decode(raw)]))
        if slot.shape == "map":
            pairs = _objects.decode(raw)
            return msgspec.Raw(msgspec.json.encode({k: _plain_number(r) for k, r in pairs.items()}))
        return _plain_number(raw)
    except ValueError as error:
        raise _located(error, path) from None


def _plain_number(raw: Any) -> object:
    data = bytes(raw)
    if data[:1] not in b"-0123456789":
        return raw
    return msgspec.Raw(b'"%s"' % plain(from_json_number(data.decode("ascii"))).encode())


def _exact(value: object) -> object:
    """What msgspec writes exactly: plain decimals, times in UTC, unknown fields in their places."""
    if isinstance(value, msgspec.Struct):
        return _exact_struct(value)
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, datetime):
        return to_utc(value)
    if isinstance(value, list | tuple):
        return [_exact(element) for element in value]
    if isinstance(value, dict):
        return {_exact_key(key): _exact(element) for key, element in value.items()}
    return value


def _exact_struct(message: msgspec.Struct) -> dict[str, object]:
    pairs: dict[str, Any] = {}
    for name, slot in _plan(type(message)).slots.items():
        value = getattr(message, slot.attribute)
        if slot.omit is not _NeedsExact and (value is slot.omit or value == slot.omit):
            continue
        try:
            pairs[name] = _exact(value)
        except ValueError as error:
            failure = error if isinstance(error, EncodeError) else EncodeError(str(error))
            failure.within(name)
            raise failure from None
    unknown = getattr(message, "unknown_", None)
    if unknown:
        for name, raw in unknown.json.items():
            pairs.setdefault(name, raw)
    return pairs


def _exact_key(key: object) -> object:
    if isinstance(key, bool):
        return "true" if key else "false"
    return key.value if isinstance(key, Enum) else key
