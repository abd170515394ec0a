"""Flattened messages: one message on the wire, one class and one flat object everywhere else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from betterproto.lib.google import protobuf as pb

from llm_cost_ops.rpc.method import QueryField
from llm_cost_ops.wire.errors import DecodeError, EncodeError
from tests.generated import generated
from tools.codegen.model import read_package
from tools.codegen.nodes import ModelError

odd: Any = generated("oddities.proto", "oddities.v1")
ASKED, NARROW = odd.codecs.ASKED, odd.codecs.NARROW
MOMENT = datetime(2026, 1, 2, tzinfo=UTC)


def asked(**fields: Any) -> Any:
    return odd.messages.Asked(**{"first": "f", "name": ["a"], "since": "s", "at": MOMENT, "size": 3} | fields)


def test_it_is_a_message_on_the_wire_and_flat_elsewhere() -> None:
    message = asked()
    part = b"\x0a\x01a\x12\x01s" + bytes([0x1A, 6, 8]) + ASKED.encode(odd.messages.Asked(at=MOMENT))[5:]
    assert ASKED.encode(message) == b"\x0a\x01f" + b"\x12" + bytes([len(part)]) + part + b"\x18\x03"
    assert ASKED.decode(ASKED.encode(message)) == message
    assert ASKED.encode_json(message) == (
        b'{"name":["a"],"since":"s","at":"2026-01-02T00:00:00Z","first":"f","size":3}'
    )
    assert ASKED.decode_json(ASKED.encode_json(message)) == message
    assert isinstance(message, odd.messages.Narrow)


def test_nothing_given_is_nothing_on_the_wire() -> None:
    assert ASKED.encode(odd.messages.Asked()) == b""


def test_parts_of_it_are_merged() -> None:
    assert ASKED.decode(b"\x12\x03\x0a\x01a\x12\x06\x0a\x01b\x12\x01s") == odd.messages.Asked(
        name=["a", "b"], since="s"
    )


def test_its_unknown_fields_stay_in_it_and_those_beside_it_beside() -> None:
    # 4 is known to neither; 3 is a time in the one, and an integer in the other.
    data = b"\x12\x05\x12\x01s\x20\x07\x18\x03\x20\x09"
    message = ASKED.decode(data)
    assert (message.since, message.size) == ("s", 3)
    written = ASKED.encode(message)
    assert ASKED.decode(written) == message
    assert b"\x12\x02\x20\x07" in written, "behind the tag of the part that it came in"
    assert written.endswith(b"\x20\x09") or written.count(b"\x20\x09") == 1
    alone = NARROW.decode(b"\x12\x01s\x20\x07")
    assert NARROW.encode(alone) == b"\x12\x01s\x20\x07"


def test_its_rules_and_its_errors_name_the_field_as_the_caller_knows_it() -> None:
    found: list[Any] = []
    odd.validators.validate_asked(asked(name=["abcd"], since=""), "", found)
    assert sorted(violation.field for violation in found) == ["name[0]", "since"]
    found = []
    odd.validators.validate_asked(asked(since=""), "parts[1]", found)
    assert [violation.field for violation in found] == ["parts[1].since"]
    found = []
    odd.validators.validate_narrow(odd.messages.Narrow(), "", found)
    assert not found, "it is required there only"
    with pytest.raises(DecodeError) as caught:
        ASKED.decode(b"\x12\x03\x0a\x01\xff")
    assert caught.value.path == "name[0]"
    with pytest.raises(DecodeError):
        ASKED.decode(b"\x12\x09\x0a\x01a")
    with pytest.raises(EncodeError) as refused:
        ASKED.encode(asked(name=["a", 1]))
    assert refused.value.path == "name[1]"


def test_its_fields_are_parameters() -> None:
    rule = odd.methods.ASK.http
    assert QueryField("name", "name", "list") in rule.fields
    assert {field.name for field in rule.fields} >= {"since", "first", "size"}


FLATTEN = b"\xc8\xb5\x18\x01"


def image(*, label: int = 1, inner: str = "a", twice: bool = False) -> Any:
    """A file of two messages, of which the second flattens the first."""

    def field(name: str, number: int, **more: Any) -> pb.FieldDescriptorProto:
        return pb.FieldDescriptorProto(name=name, number=number, **{"label": label, "type": 11} | more)

    flat = [field("part", 1, type_name=".t.Part")] + [field("more", 2, type_name=".t.Part")] * twice
    for each in flat:
        each.options = pb.FieldOptions().parse(FLATTEN)
    part = pb.DescriptorProto(name="Part", field=[field(inner, 1, type=9, label=1)])
    whole = pb.DescriptorProto(name="Whole", field=[*flat, field("b", 3, type=9, label=1)])
    file = pb.FileDescriptorProto(name="t.proto", package="t", syntax="proto3", message_type=[part, whole])
    return pb.FileDescriptorProto().parse(bytes(file))


def test_a_plain_pair_is_taken() -> None:
    package = read_package([image()], ["t"])
    whole = next(message for message in package.messages if message.name == "Whole")
    assert [field.name for field in whole.flat] == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"label": 3}, "comes once"),
        ({"inner": "b"}, "same name"),
        ({"twice": True}, "at most"),
    ],
)
def test_what_a_class_cannot_inherit_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_package([image(**given)], ["t"])
