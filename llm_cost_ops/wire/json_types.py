"""How generated structs annotate what JSON must hold to protobuf's rules: integer ranges, keys of maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

__all__ = ["BoolKey", "Int32", "Int64", "IntKey", "UInt32", "UInt64"]

Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
UInt32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]

if TYPE_CHECKING:
    UInt64 = int
    IntKey = int
    BoolKey = bool
else:

    class _Like(type):
        """Makes stand-ins for what msgspec can't hold to our rules; the codec's hook reads those."""

        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, cls.of)

    class UInt64(metaclass=_Like):
        """An int of 64 bits without sign: msgspec's bounds are int64."""

        of = int

    class IntKey(metaclass=_Like):
        """An int as the key of a map: JSON has only strings there."""

        of = int

    class BoolKey(metaclass=_Like):
        """A bool as the key of a map: "true" or "false" in JSON."""

        of = bool
