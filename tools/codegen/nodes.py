"""The nodes of the model: packages, messages, fields, enums and methods, with their Python names resolved."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field, replace
from string import Template

from tools.codegen.kinds import KINDS, MESSAGES
from tools.codegen.options import Options

__all__ = [
    "Enum",
    "EnumValue",
    "Field",
    "Message",
    "Method",
    "ModelError",
    "Named",
    "Package",
    "Service",
    "Type",
    "snake_case",
]


class ModelError(Exception):
    """The descriptors hold what the generator cannot express."""


@dataclass
class Named:
    """What has a name in protobuf, "llm_cost_ops.v1.UsageRecord", and one in Python, "UsageRecord"."""

    full_name: str
    name: str
    comment: str

    @property
    def snake(self) -> str:
        """The name for functions: "usage_record"."""
        return snake_case(self.name)

    @property
    def constant(self) -> str:
        """The name for constants: "USAGE_RECORD"."""
        return self.snake.upper()


@dataclass
class EnumValue:
    """A value: `name` is the Python member ("CHAT"), `value` its string ("chat"; of an alias the first's)."""

    name: str
    value: str
    number: int
    comment: str


@dataclass
class Enum(Named):
    """An enum, which is open. The first of its values has the number 0."""

    values: list[EnumValue]


@dataclass
class Type:
    """The type of a value: of a field, of a list's elements, or of a map's keys or values.

    `kind` is one of kinds.KINDS: protobuf's name of a scalar; "enum"; "message" or that of a well-known one,
    where "wrapper" stands around a scalar `wrapped`; decimal or raw_json for a string with that option.
    """

    kind: str
    message: Message | None = None
    enum: Enum | None = None
    wrapped: str = ""

    @property
    def is_message(self) -> bool:
        """Whether it is a message on the wire."""
        return self.kind in MESSAGES

    @property
    def wire_type(self) -> int:
        """The wire type of one value."""
        return KINDS[self.kind].wire_type

    @property
    def scalar(self) -> str:
        """The kind of what Python sees."""
        return self.wrapped or self.kind

    @property
    def annotation(self) -> str:
        """The annotation of one value."""
        return self._fill(KINDS[self.scalar].annotation)

    @property
    def default(self) -> str:
        """What a value is that is not on the wire."""
        return self._fill(KINDS[self.scalar].default)

    @property
    def plain(self) -> str:
        """The annotation without the bounds that JSON needs."""
        return re.sub(r"\bU?Int\d\d\b", "int", self.annotation)

    def write(self, value: str) -> str:
        """The expression of the bytes of a value."""
        return self._fill(KINDS[self.kind].write, v=value)

    def read(self, data: str = "", start: str = "", stop: str = "", earlier: str = "None") -> str:
        """The expression of a value that lies in `data`, or of the varint `n`."""
        end = stop or f"len({data})"
        holes = {"data": data, "start": start, "stop": stop, "end": end, "earlier": earlier}
        return self._fill(KINDS[self.kind].read, at=f"{data}, {start or 0}, {end}", **holes)

    def _fill(self, text: str, **holes: str) -> str:
        named = self.message or self.enum
        if named is not None:
            holes |= {"cls": named.name, "snake": named.snake, "upper": named.constant}
        return Template(text).substitute(holes, wrapped=self.wrapped)


@dataclass
class Field:
    """A field. `name` is the proto's, `attribute` the struct's, `rest_name` the one in JSON and queries.

    `cardinality` is "singular" (implicit presence, or a message), "optional" (explicit presence: proto3
    `optional` and members of a oneof), "repeated" or "map". `type` is the element's or the map value's type.
    """

    name: str
    attribute: str
    number: int
    type: Type
    cardinality: str
    options: Options
    comment: str = ""
    key: Type | None = None
    packed: bool = False
    oneof: str = ""

    @property
    def rest_name(self) -> str:
        return self.options.rest_name or self.name

    @property
    def many(self) -> bool:
        """Whether it is a list or a map."""
        return self.cardinality in ("repeated", "map")

    @property
    def nullable(self) -> bool:
        """Whether None stands for its absence in Python."""
        one = self.cardinality == "singular" and (self.type.is_message or self.type.kind == "raw_json")
        return one or self.cardinality == "optional"

    @property
    def wire_type(self) -> int:
        """The wire type of each of its values, when they are not packed."""
        return 2 if self.cardinality == "map" else self.type.wire_type


@dataclass
class Message(Named):
    """A message."""

    options: Options
    fields: list[Field] = field(default_factory=list)
    # Whether another message holds its fields as its own.
    flattened: bool = False
    # Whether it comes in lists or maps, or in what does: there may be many in one call.
    listed: bool = False

    @property
    def base(self) -> Message | None:
        """The flattened message that its class inherits, if any."""
        return next((member.type.message for member in self.fields if member.options.flatten), None)

    @property
    def own(self) -> list[Field]:
        """The fields that its class declares: all but those of the base."""
        return [member for member in self.fields if not member.options.flatten]

    @property
    def flat(self) -> list[Field]:
        """The fields of its class: those of the base, as they are required here, and its own."""
        inherited: list[Field] = []
        for member in self.fields:
            if member.options.flatten and member.type.message is not None:
                required = member.options.rules.required_fields
                inherited += [_required(f) if f.name in required else f for f in member.type.message.fields]
        return inherited + self.own

    @property
    def within(self) -> dict[str, Message]:
        """The messages that it can hold, at any depth."""
        found: dict[str, Message] = {}
        todo = [self]
        while todo:
            for inner in [member.type.message for member in todo.pop().fields]:
                if inner is not None and inner.full_name not in found:
                    found[inner.full_name] = inner
                    todo.append(inner)
        return found

    @property
    def cyclic(self) -> bool:
        """Whether it can hold itself."""
        return self.full_name in self.within

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


@dataclass
class Method(Named):
    """An RPC. `attribute` is the servicer's method, `python_name` the resource's; `verb` is REST's."""

    attribute: str
    python_name: str
    service: Service
    request: Message
    response: Message
    cardinality: str
    idempotency: str
    options: Options
    verb: str
    path: str

    @property
    def body(self) -> Field | None:
        """The request's field that is the body in REST, where that is not the whole request."""
        name = self.options.http.body
        return None if name in ("", "*") else self.request.field(name)

    @property
    def made(self) -> Message:
        """The message whose fields are the parameters in Python: REST's body, or the request."""
        return (self.body and self.body.type.message) or self.request

    def place(self, field: Field) -> str:
        """Where REST has a field of the request: in the "path", the "query", or "" for the body."""
        if re.search(rf"{{{field.name}\b", self.path):
            return "path"
        in_body = self.options.http.body in ("*", field.name) or (field.key is None and field.type.is_message)
        return "" if in_body else "query"

    @property
    def returned(self) -> Field | None:
        """The response's message field that the method in Python returns instead: `data`, or REST's body."""
        if name := self.options.http.response_body:
            return self.response.field(name)
        data = [f for f in self.response.fields if f.name == "data" and f.cardinality == "singular"]
        return data[0] if data and data[0].type.message is not None else None

    @property
    def key_path(self) -> list[Field]:
        """The fields of the request that lead to the idempotency key."""
        fields: list[Field] = []
        inner: Message | None = self.request
        for name in filter(None, self.options.idempotency_key.split(".")):
            if inner is None:
                raise ModelError(f"{self.full_name}: the key's path leads through what is no message")
            fields.append(inner.field(name))
            inner = fields[-1].type.message
        return fields


@dataclass
class Service(Named):
    """A service. `resource` is the name of its resource on the client ("usage")."""

    resource: str
    methods: list[Method] = field(default_factory=list)


@dataclass
class Package:
    """All that becomes the Python package `python`, in a stable order: by file name, then as declared."""

    python: str
    messages: list[Message] = field(default_factory=list)
    enums: list[Enum] = field(default_factory=list)
    services: list[Service] = field(default_factory=list)

    @property
    def methods(self) -> list[Method]:
        """Those of all services."""
        return [method for service in self.services for method in service.methods]

    @property
    def checked(self) -> list[Message]:
        """The messages with rules: requests and what they hold, or all where there is no service."""
        roots = [method.request for method in self.methods]
        found = {m.full_name for root in roots for m in [root, *root.within.values()]}
        return [m for m in self.messages if not roots or m.full_name in found]


def _required(field: Field) -> Field:
    options = copy.deepcopy(field.options)
    options.rules.required = True
    return replace(field, options=options)


def snake_case(name: str) -> str:
    """Turn SubmitUsage into submit_usage, HTTPRule2 into http_rule2."""
    split = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", split).lower()
