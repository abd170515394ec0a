"""What goes wrong between messages and bytes."""

from __future__ import annotations

__all__ = ["DecodeError", "EncodeError"]


class _CodecError(ValueError):
    """`path` names the field, such as "records[3].timestamp"; it is "" for the message itself."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason

    def within(self, parent: str) -> None:
        """Put the name of the enclosing field in front of the path: the error left that field."""
        if not self.path:
            self.path = parent
        elif self.path.startswith("["):
            self.path = parent + self.path
        else:
            self.path = f"{parent}.{self.path}"
        self.args = (self.reason, self.path)


class DecodeError(_CodecError):
    """Bytes that are not a message of the type, as protobuf or as JSON.

    `path` is the field where decoding stopped, such as "records[3].timestamp", or "" for the
    message itself; `reason` says in words what is wrong. No part of the message is returned.
    """


class EncodeError(_CodecError):
    """A message that cannot be written: a value outside its field's type or range.

    `path` is the field, such as "records[3].timestamp"; `reason` says in words what is wrong.
    """
