"""Messages to HTTP requests and back."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.transports.http.binding import Router, binding_of
from llm_cost_ops.wire import DecodeError
from tests.tiny_service import (
    COPY_NOTE,
    FIND_NOTES,
    GET_NOTE,
    METHODS,
    PUT_NOTE,
    Color,
    CopyNoteRequest,
    FindNotesRequest,
    GetNoteRequest,
    Note,
    PutNoteRequest,
)

ROUTER = Router(METHODS)

texts = st.text(st.characters(codec="utf-8"), max_size=12)
awkward = st.one_of(texts, st.text(",\\%&=+[] ;/?#é\0\r\n", max_size=6))
find_requests = st.builds(
    FindNotesRequest,
    provider=st.lists(awkward, max_size=3),
    label=st.dictionaries(awkward, awkward, max_size=3),
    count=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    page=st.integers(-(2**31), 2**31 - 1),
    page_size=st.integers(0, 1000),
    ratio=st.floats(0, 1e9, width=32).map(lambda x: round(x, 6)),
    exact=st.none() | st.booleans(),
    color=st.sampled_from(Color),
    colors=st.lists(st.sampled_from(Color), max_size=3),
    text=st.none() | awkward,
    renamed=awkward,
)


def there_and_back(method, request):
    sent = binding_of(method).encode(request)
    assert sent.path.isascii()
    assert sent.query.isascii()
    assert not set(sent.target) & set(" \r\n\0")
    route = ROUTER.match(sent.path)
    assert route is not None
    binding = route.bindings[sent.verb]
    assert binding.method is method
    return binding.decode(route.variables, sent.query, sent.body or b"")


def refusal(call):
    try:
        call()
    except RpcError as error:
        return error
    return None


@given(find_requests)
def test_query_round_trip(request):
    assert there_and_back(FIND_NOTES, request) == request


@given(awkward.filter(lambda text: text not in {"", ".", ".."}), awkward)
def test_path_and_body_round_trip(id_, text):
    assert there_and_back(GET_NOTE, GetNoteRequest(id=id_)) == GetNoteRequest(id=id_)
    request = CopyNoteRequest(id=id_, text=text)
    assert there_and_back(COPY_NOTE, request) == request


@given(st.builds(Note, id=texts, text=awkward, count=st.integers(-9, 9)), awkward, st.booleans())
def test_body_field_round_trip(note, owner, dry_run):
    request = PutNoteRequest(note=note, owner=owner, dry_run=dry_run)
    assert there_and_back(PUT_NOTE, request) == request


@given(st.text(string.printable, max_size=40))
def test_any_query_is_a_message_or_an_invalid_argument(query):
    error = refusal(lambda: binding_of(FIND_NOTES).decode([], query, b""))
    assert error is None or (error.code is StatusCode.INVALID_ARGUMENT and error.violations)


@given(st.text(max_size=30))
def test_any_path_is_a_route_or_none_or_an_invalid_argument(path):
    error = refusal(lambda: ROUTER.match(path))
    assert error is None or error.code is StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("id_", ["", ".", ".."])
def test_an_id_that_would_change_the_path_is_refused(id_):
    with pytest.raises(RpcError) as raised:
        binding_of(GET_NOTE).encode(GetNoteRequest(id=id_))
    assert raised.value.origin == "client"
    assert raised.value.violations[0].field == "id"


def test_an_id_can_not_leave_its_segment():
    sent = binding_of(GET_NOTE).encode(GetNoteRequest(id="../../admin?x=1#y"))
    assert sent.target == "/api/v1/notes/..%2F..%2Fadmin%3Fx%3D1%23y"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("provider=a&provider=b", FindNotesRequest(provider=["a", "b"])),
        ("provider=a,b", FindNotesRequest(provider=["a", "b"])),
        ("provider=a%2Cb", FindNotesRequest(provider=["a", "b"])),
        (r"provider=a\,b", FindNotesRequest(provider=["a,b"])),
        ("provider=a,b&provider=c", FindNotesRequest(provider=["a,b", "c"])),
        ("label[team]=search&label[env]=prod", FindNotesRequest(label={"team": "search", "env": "prod"})),
        ("label%5Bteam%5D=a+b", FindNotesRequest(label={"team": "a b"})),
        ("per_page=5", FindNotesRequest(page_size=5)),
        ("limit=5&page=2", FindNotesRequest(page_size=5, page=2)),
        ("exact=true", FindNotesRequest(exact=True)),
        ("count=1,2", FindNotesRequest(count=[1, 2])),
        ("other_name=x", FindNotesRequest(renamed="x")),
        ("", FindNotesRequest()),
    ],
)
def test_documented_forms_of_a_query(query, expected):
    assert binding_of(FIND_NOTES).decode([], query, b"") == expected


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("unknown=1&page=x&other=2", {"unknown", "page", "other"}),
        ("page=x&page_size=1.5&exact=maybe", {"page", "page_size", "exact"}),
        ("page=1&page=2", {"page"}),
        ("page_size=1&limit=2", {"page_size"}),
        ("label=x", {"label"}),
        ("page[x]=1", {"page[x]"}),
        ("label[a]=1&label[a]=2", {"label[a]"}),
        ("page=999999999999999999999999", {"page"}),
        ("text=%ff", {"text"}),
        ("text=%zz", {"text"}),
        ("renamed=x", {"renamed"}),
        ("color=green", {"color"}),
        ("&".join(["page=1"] * 2000), {"query"}),
    ],
)
def test_every_wrong_parameter_is_named(query, fields):
    with pytest.raises(RpcError) as raised:
        binding_of(FIND_NOTES).decode([], query, b"")
    assert raised.value.code is StatusCode.INVALID_ARGUMENT
    assert {violation.field for violation in raised.value.violations} == fields


@pytest.mark.parametrize(
    "path", ["/", "/api/v1/notes/", "/api/v1//notes", "/api/v1/notes/a/b", "api/v1/notes", "/{}", ""]
)
def test_other_paths_have_no_route(path):
    assert ROUTER.match(path) is None


def test_a_body_that_is_no_message_names_the_field():
    with pytest.raises(RpcError) as raised:
        binding_of(PUT_NOTE).decode([], "", b'{"count": "many"}')
    assert raised.value.violations[0].field == "count"
    with pytest.raises(RpcError) as raised:
        binding_of(PUT_NOTE).decode([], "", b"")
    assert raised.value.violations[0].field == "body"


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": {"id": "n"}, "meta": {"request_id": "r"}}',
        b'{"id": "n"}',
        b' {"meta": null, "data": {"id": "n"}}',
    ],
)
def test_data_is_found_with_and_without_its_envelope(body):
    assert binding_of(GET_NOTE).decode_response(body).data == Note(id="n")


@pytest.mark.parametrize(
    ("body", "has_next", "size", "items"),
    [
        (
            b'{"data": [], "pagination": {"page": 1, "page_size": 2, "total_items": 5, "has_next": true}}',
            True,
            2,
            5,
        ),
        (b'{"data": [], "pagination": {"page": 1, "per_page": 2, "total": 5}}', True, 2, 5),
        (b'{"data": [], "pagination": {"page": 3, "limit": 2, "total": 5}}', False, 2, 5),
        (b'{"data": [], "pagination": {"limit": 2, "next_cursor": "c"}}', True, 2, None),
        (b'{"data": [], "pagination": {"limit": 2, "next_cursor": null, "total": null}}', False, 2, None),
        (b'{"data": [], "page": 1, "page_size": 2, "total": 3}', True, 2, 3),
        (
            b'{"data": [], "pagination": {"page": 1, "page_size": 2, "total_items": 5, "has_next": false}}',
            False,
            2,
            5,
        ),
    ],
)
def test_documented_forms_of_a_page(body, has_next, size, items):
    page = binding_of(FIND_NOTES).decode_response(body).pagination
    assert (page.has_next, page.page_size, page.per_page or size, page.total_items) == (
        has_next,
        size,
        size,
        items,
    )


def test_a_bare_list_is_the_data():
    assert binding_of(FIND_NOTES).decode_response(b'[{"id": "n"}]').data == [Note(id="n")]
    assert binding_of(FIND_NOTES).decode_response(b'{"data": [{"id": "n"}]}').data == [Note(id="n")]


@given(
    st.binary(max_size=60)
    | st.sampled_from([b"", b"<html>", b"[", b"null", b'{"data": 1', b"{}" * 2, b"[" * 5000])
)
def test_any_body_is_a_message_or_a_decode_error(body):
    for method in (GET_NOTE, FIND_NOTES):
        try:
            binding_of(method).decode_response(body)
        except DecodeError:
            pass
