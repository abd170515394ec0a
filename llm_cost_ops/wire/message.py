"""What every generated message is: a struct that keeps unknown fields, and can say itself as JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from llm_cost_ops.wire.unknown import Unknown

__all__ = ["MessageStruct"]


class MessageStruct(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """A message."""

    unknown_: Unknown | UnsetType = msgspec.field(default=UNSET, name="?unknown")

    def to_json(self) -> str:
        """The message as the JSON text that REST has for it, unknown fields included.

        Decimals are strings, times RFC 3339, and enums the lower-case names of their values. Raises
        EncodeError, a ValueError, for a value that is not of its field's type.
        """
        from llm_cost_ops.wire.json import encode_exactly

        return encode_exactly(self).decode()

    def to_dict(self) -> dict[str, Any]:
        """The same as a dict of plain values: dict, list, str, int, float, bool and None."""
        from llm_cost_ops.wire.json import encode_exactly

        decoded: dict[str, Any] = msgspec.json.decode(encode_exactly(self))
        return decoded
