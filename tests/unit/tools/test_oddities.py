"""What our protocol does not use yet: odd names, rules, cardinalities (tests/golden/oddities.proto)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from llm_cost_ops.rpc.method import Cardinality, HttpRule, Idempotency, QueryField
from llm_cost_ops.wire.errors import DecodeError
from tests.generated import generated

odd: Any = generated("oddities.proto", "oddities.v1")
m = odd.messages
c = odd.codecs
TOO_LARGE = "must have at most 18 digits before and 18 after the point"


class Recorder:
    """A channel that keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def unary_unary(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return "answer"

    def unary_stream(self, *arguments: Any) -> Iterator[Any]:
        self.calls.append(arguments)
        return iter(["answer"])

    stream_stream = unary_stream


class AsyncRecorder:
    """The same for async resources."""

    async def unary_unary(self, *arguments: Any) -> Any:
        return "answer"

    async def unary_stream(self, *arguments: Any) -> AsyncIterator[Any]:
        yield "answer"


def violations(message: Any) -> dict[str, str]:
    found: list[Any] = []
    validate = odd.validators.validate_ruled if type(message) is m.Ruled else odd.validators.validate_outer
    validate(message, "", found)
    return {v.field: v.description for v in found}


def valid(**changes: Any) -> Any:
    return m.Ruled(**{"name": "n", "tags": ["a"], "outer": m.Outer(), "shade": m.Shade.DARK} | changes)


def test_attributes_step_aside_for_python() -> None:
    given = {
        "from_": "f",
        "class_": "c",
        "self_": "s",
        "unknown__": "u",
        "int_": 1,
        "None_": "n",
        "private_": "p",
    }
    names = m.Names(**given, rest="r", rest_list=["l"])
    written = msgspec.json.decode(c.NAMES.encode_json(names))
    assert {k: written[k] for k in ("from", "class", "self", "unknown_", "int", "None", "__private")} == dict(
        zip(("from", "class", "self", "unknown_", "int", "None", "__private"), given.values(), strict=True)
    )
    assert (written["other_name"], written["other_list"]) == ("r", ["l"])
    assert c.NAMES.decode_json(c.NAMES.encode_json(names)) == names == c.NAMES.decode(c.NAMES.encode(names))


def test_messages_step_aside_for_imports_and_for_each_other() -> None:
    assert c.ANY_.full_name == "oddities.v1.Any"
    assert c.ANY__.full_name == "google.protobuf.Any"
    message = m.Any_(any=m.Any__(type_url="t", value=b"v"), nothing=m.Empty())
    assert c.ANY_.decode_json(c.ANY_.encode_json(message)) == message


def test_comments_become_docstrings() -> None:
    assert m.Quotes.__doc__ == "Says \"quotes\", a \\ backslash and '''three of them'''. "[:-1]
    assert m.OuterInner.__doc__ == "Nested."
    assert "One to one." in odd.servicers.OddServicer.get_one.__doc__


def test_nested_types_are_flat_and_cycles_are_collected() -> None:
    inner = m.OuterInner(side=m.OuterInnerSide.LEFT, outer=m.Outer())
    assert m.Outer.__struct_config__.gc
    assert not m.Names.__struct_config__.gc
    again = c.OUTER.decode_json(c.OUTER.encode_json(m.Outer(inner=inner, by_number={-5: inner})))
    assert again.by_number == {-5: inner}


def test_enums_with_odd_names() -> None:
    shade = m.Shade
    assert [(s.name, s.value, s.number) for s in shade] == [
        ("UNSPECIFIED", "unspecified", 0),
        ("DARK", "dark", 1),
        ("SHADE_2", "shade_2", 2),
        ("PALE", "pale", 3),
        ("NEGATIVE", "negative", -1),
        ("NONE", "none", 5),
    ]
    assert shade.BLACK is shade.DARK is shade("black") is shade("DARK") is shade("1")
    assert c.OUTER.decode_json(b'{"shades": ["black", "new", "77"]}').shades == ["dark", "new", "77"]


def test_bool_keys_are_words_in_json() -> None:
    message = m.Outer(by_bool={True: m.Shade.DARK, False: m.Shade("new")})
    data = c.OUTER.encode_json(message)
    assert b'"by_bool":{"true":"dark","false":"new"}' in data
    assert c.OUTER.decode_json(data) == message
    with pytest.raises(DecodeError, match="expected true or false"):
        c.OUTER.decode_json(b'{"by_bool": {"yes": "dark"}}')
    with pytest.raises(DecodeError, match="expected an integer as key"):
        c.OUTER.decode_json(b'{"by_number": {"01": {}}}')


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"name": ""}, "name", "is required"),
        ({"name": "123456"}, "name", "must have at most 5 characters, not 6"),
        ({"name": "a\x00"}, "name", "must not have control characters: 'a\\x00'"),
        ({"name": "\ud800"}, "name", "must be Unicode text; it has a lone surrogate"),
        ({"text": 5}, "text", "must be a string, not 5"),
        ({"level": 3}, "level", "must be 2 or less, not 3"),
        ({"level": -3}, "level", "must be -2 or more, not -3"),
        ({"level": True}, "level", "must be an integer, not True"),
        ({"level": 1.0}, "level", "must be an integer, not 1.0"),
        ({"level": 10**5000}, "level", "must be 2 or less, not a number of 16610 bits"),
        ({"ratio": 1.5}, "ratio", "must be 1 or less, not 1.5"),
        ({"ratio": float("nan")}, "ratio", "must be 0 or more, not nan"),
        ({"ratio": "1"}, "ratio", "must be a number, not '1'"),
        ({"price": Decimal(-1)}, "price", "must be 0 or more, not -1"),
        ({"price": Decimal("NaN")}, "price", "must be a finite number, not NaN"),
        ({"price": 0.1}, "price", "must be a Decimal or a str such as '0.1', not a float"),
        ({"price": Decimal("1E+999999")}, "price", f"{TOO_LARGE}, not 1E+999999"),
        ({"tags": []}, "tags", "is required"),
        ({"tags": ["a"] * 3}, "tags", "must have at most 2 items, not 3"),
        ({"tags": ["a", "long"]}, "tags[1]", "must have at most 3 characters, not 4"),
        ({"tags": "a"}, "tags", "must be a list, not 'a'"),
        ({"outer": None}, "outer", "is required"),
        ({"outer": 1}, "outer", "must be an Outer, not 1"),
        ({"shade": m.Shade.UNSPECIFIED}, "shade", "is required"),
        ({"token": b"12345"}, "token", "must have at most 4 bytes, not 5"),
        ({"token": "1"}, "token", "must be bytes, not '1'"),
        ({"meters": {"a": 0}}, "meters[a]", "must be 1 or more, not 0"),
        ({"meters": {"long": 1}}, "meters[long]", "must have at most 3 characters, not 4"),
        ({"meters": {1: 1}}, "meters[1]", "must be a string, not 1"),
        ({"meters": [1]}, "meters", "must be a dict, not of type list"),
        ({"number": 1, "word": "w"}, "word", "must not be set beside number: only one of them may be"),
    ],
)
def test_a_broken_rule_names_field_and_rule(changes: dict[str, Any], field: str, words: str) -> None:
    assert violations(valid(**changes)) == {field: words}


def test_valid_is_valid() -> None:
    assert violations(valid(text="a\n\x00", level=-2, ratio=1, price=Decimal(10), number=0)) == {}


def test_all_broken_rules_are_told_at_once_with_their_paths() -> None:
    message = valid(name="", parts=[valid(), valid(level=9, parts=[valid(name=5)]), 3])
    assert violations(message) == {
        "name": "is required",
        "parts[1].level": "must be 2 or less, not 9",
        "parts[1].parts[0].name": "must be a string, not 5",
        "parts[2]": "must be a Ruled, not 3",
    }


def test_a_malformed_element_of_an_itemized_list_fails_alone() -> None:
    message = c.RULED.decode_json(
        b'{"parts": [{"name": "a"}, {"level": "x"}, 5, {"parts": [{"token": "?"}]}]}'
    )
    assert [part.name for part in message.parts] == ["a", "", "", ""]
    told = violations(message)
    assert told["parts[1].level"] == "expected int, got str"
    assert told["parts[2]"] == "expected object, got int"
    assert told["parts[3].parts[0].token"] == "Invalid base64 encoded string"


def test_json_refuses_two_members_of_a_oneof() -> None:
    with pytest.raises(DecodeError, match=r"word: must not be given beside number"):
        c.RULED.decode_json(b'{"word": "w", "number": 0}')


def test_methods_describe_every_cardinality() -> None:
    methods = odd.methods
    assert [x.cardinality for x in (methods.WATCH_MANY, methods.CHAT)] == [
        Cardinality.UNARY_STREAM,
        Cardinality.STREAM_STREAM,
    ]
    one = methods.GET_ONE
    assert (one.idempotency, one.unwrap, one.http.verb, one.http.path) == (
        Idempotency.IDEMPOTENT,
        "data",
        "GET",
        "/v1/one/{from}",
    )
    fields = {field.name: field for field in one.http.fields}
    assert fields["from"] == QueryField("from", "from_", "scalar")
    assert fields["other_list"] == QueryField("other_list", "rest_list", "list")
    assert fields["dict"].kind == "map"
    assert "datetime" not in fields
    assert methods.MAKE_ONE.http == HttpRule(
        "PUT", "/v1/one/{name}", "*", 200, (QueryField("name", "name", "scalar"),), c.RULED
    )


def test_resource_methods_call_the_channel() -> None:
    channel = Recorder()
    resource = odd.resources.OddResource(channel)
    assert (
        resource.import_(
            from_="f", rest_list="one", timeout_=1.5, datetime_=datetime(2026, 1, 1), response_="r"
        )
        == "answer"
    )
    request = m.Names(
        from_="f", rest_list=["one"], timeout=1.5, datetime_=datetime(2026, 1, 1, tzinfo=UTC), response="r"
    )
    assert channel.calls.pop()[1] == request
    assert next(resource.watch_many(name="n", tags="t", outer=None, shade="dark", price="0.5")) == "answer"
    assert channel.calls.pop()[1] == m.Ruled(name="n", tags=["t"], shade=m.Shade.DARK, price=Decimal("0.5"))
    assert next(resource.chat([m.Ruled()])) == "answer"
    resource.make_one(name="n", tags=["t"], outer=m.Outer(), shade="new", idempotency_key="k", timeout=0)
    method, request, timeout, headers, _retry, key = channel.calls.pop()
    assert (method, request.shade, timeout, headers, key) == (odd.methods.MAKE_ONE, "new", 0, None, "k")


async def test_async_resource_methods_await_it() -> None:
    resource = odd.resources.AsyncOddResource(AsyncRecorder())
    assert await resource.import_(from_="f") == "answer"
    assert [x async for x in resource.watch_many(name="n", tags=(), outer=None, shade="")] == ["answer"]


def test_servicers_are_bound_to_their_methods() -> None:
    class Servicer:
        def __getattr__(self, name: str) -> str:
            return name

    bound = odd.servicers.bind_odd_service(Servicer())
    assert [(method.name, name) for method, name in bound] == [
        ("GetOne", "get_one"),
        ("WatchMany", "watch_many"),
        ("Chat", "chat"),
        ("MakeOne", "make_one"),
        ("Ask", "ask"),
    ]


def test_structs_copy_and_pickle() -> None:
    message = valid(shade=m.Shade("new"), price=Decimal("0.1"))
    assert copy.deepcopy(message) == message
    assert copy.copy(message).shade == "new"
    enum = message.shade
    assert pickle.loads(pickle.dumps(c.RULED.type.__struct_fields__)) == c.RULED.type.__struct_fields__
    assert copy.copy(enum) is enum
