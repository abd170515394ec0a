"""The nodes of the model: packages, messages, fields, enums and methods, with their Python names resolved.

A field's `Type` has two names: `proto` is what is on the wire ("int64", "string", "enum", "message"…) and
`kind` what Python sees. They are the same but for
- decimal, raw_json: a string on the wire (options `decimal`, `raw_json`); a Decimal, a dict in Python;
- timestamp, duration, struct, value, list_value: well-known messages;
- wrapper: a well-known wrapper message, whose `value` field has the scalar type `Type.wrapped`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = [
    "INT_RANGES",
    "Enum",
    "EnumValue",
    "Field",
    "Http",
    "Message",
    "Method",
    "ModelError",
    "Package",
    "Rules",
    "Service",
    "Type",
    "constant_name",
    "snake_case",
]

_SIGNED_32, _SIGNED_64 = (-(2**31), 2**31 - 1), (-(2**63), 2**63 - 1)
INT_RANGES = {
    **dict.fromkeys(("int32", "sint32", "sfixed32"), _SIGNED_32),
    **dict.fromkeys(("int64", "sint64", "sfixed64"), _SIGNED_64),
    **dict.fromkeys(("uint32", "fixed32"), (0, 2**32 - 1)),
    **dict.fromkeys(("uint64", "fixed64"), (0, 2**64 - 1)),
}
_LENGTH_DELIMITED = frozenset({"string", "bytes", "message"})


class ModelError(Exception):
    """The descriptors hold what the generator cannot express."""


@dataclass(frozen=True)
class Rules:
    """The `rules` option of a field."""

    required: bool = False
    max_length: int | None = None
    minimum: int | None = None
    maximum: int | None = None
    max_items: int | None = None
    multiline: bool = False


@dataclass
class EnumValue:
    """One value: `name` is the Python member ("CHAT"), `value` its string ("chat").

    An alias has the `value` of the first member with its number.
    """

    name: str
    value: str
    number: int
    comment: str
    alias: bool


@dataclass
class Enum:
    """An enum, which is open. `name` is the Python class."""

    full_name: str
    name: str
    comment: str
    values: list[EnumValue] = field(default_factory=list)

    @property
    def default(self) -> EnumValue:
        """The value with number 0, which proto3 puts first."""
        return self.values[0]


@dataclass
class Type:
    """The type of a value: of a field, of a list's elements, or of a map's keys or values."""

    proto: str
    kind: str
    message: Message | None = None
    enum: Enum | None = None
    wrapped: str = ""

    @property
    def packable(self) -> bool:
        """Whether a repeated field of it may be packed."""
        return self.proto not in _LENGTH_DELIMITED


@dataclass
class Field:
    """A field. `name` is the proto's, `attribute` the struct's, `rest_name` the one in JSON and queries.

    `cardinality` is "singular" (implicit presence, or a message), "optional" (explicit presence: proto3
    `optional` and members of a oneof), "repeated" or "map". `type` is the element's or the map value's type.
    """

    name: str
    attribute: str
    rest_name: str
    number: int
    type: Type
    cardinality: str
    comment: str = ""
    key: Type | None = None
    packed: bool = False
    oneof: str = ""
    rules: Rules = Rules()
    moment: bool = False
    itemized: bool = False
    example: str = ""
    rest_aliases: tuple[str, ...] = ()

    @property
    def nullable(self) -> bool:
        """Whether None stands for its absence in Python."""
        if self.cardinality in ("repeated", "map"):
            return False
        return self.cardinality == "optional" or self.type.proto == "message"


@dataclass
class Message:
    """A message. `name` is the Python class; `cyclic` tells whether it can hold itself, at any depth."""

    full_name: str
    name: str
    comment: str
    fields: list[Field] = field(default_factory=list)
    omit_defaults: bool = False
    cyclic: bool = False

    @property
    def snake(self) -> str:
        """The name for functions: "usage_record"."""
        return snake_case(self.name)

    @property
    def constant(self) -> str:
        """The name of its codec constant: "USAGE_RECORD"."""
        return constant_name(self.name)

    @property
    def oneofs(self) -> dict[str, list[Field]]:
        """Its real oneofs (not those that stand for `optional`) and their members."""
        groups: dict[str, list[Field]] = {}
        for member in self.fields:
            if member.oneof:
                groups.setdefault(member.oneof, []).append(member)
        return groups

    def field(self, name: str) -> Field:
        """The field with a proto name; ModelError when there is none."""
        for candidate in self.fields:
            if candidate.name == name:
                return candidate
        raise ModelError(f"{self.full_name} has no field {name!r}")


@dataclass(frozen=True)
class Http:
    """A google.api.http rule: `body` is "", "*" or a field's name, `response_body` "" or a field's name."""

    verb: str
    path: str
    body: str
    response_body: str = ""


@dataclass
class Method:
    """An RPC. `attribute` is the servicer's method, `python_name` the resource's."""

    name: str
    attribute: str
    python_name: str
    service: Service
    request: Message
    response: Message
    cardinality: str
    idempotency: str
    comment: str
    http: Http | None = None
    http_status: int = 200
    idempotency_key: str = ""

    @property
    def constant(self) -> str:
        """The name of its descriptor constant: "SUBMIT_USAGE"."""
        return constant_name(self.name)


@dataclass
class Service:
    """A service. `resource` is the name of its resource on the client ("usage")."""

    full_name: str
    name: str
    resource: str
    comment: str
    methods: list[Method] = field(default_factory=list)

    @property
    def snake(self) -> str:
        """The name for functions: "usage_service"."""
        return snake_case(self.name)


@dataclass
class Package:
    """All that becomes the Python package `python`, in a stable order: by file name, then as declared."""

    python: str
    messages: list[Message] = field(default_factory=list)
    enums: list[Enum] = field(default_factory=list)
    services: list[Service] = field(default_factory=list)


def snake_case(name: str) -> str:
    """Turn SubmitUsage into submit_usage, HTTPRule2 into http_rule2."""
    split = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", split).lower()


def constant_name(name: str) -> str:
    """Turn SubmitUsage into SUBMIT_USAGE."""
    return snake_case(name).upper()
