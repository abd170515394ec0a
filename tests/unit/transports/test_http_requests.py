"""What leaves through our own connections is what httpx would send."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops._gen.messages import SubmitUsageRequest, UsageRecord
from llm_cost_ops._gen.methods import GET_HEALTH, STREAM_USAGE, SUBMIT_USAGE
from llm_cost_ops.transports.http.exchange import Exchange, origin_of
from llm_cost_ops.transports.http.streaming import StreamExchange
from tests.tiny_service import (
    COPY_NOTE,
    FIND_NOTES,
    GET_NOTE,
    PUT_NOTE,
    CopyNoteRequest,
    FindNotesRequest,
    GetNoteRequest,
    Note,
    PutNoteRequest,
    context,
)

texts = st.text(st.characters(codec="utf-8"), max_size=12)
calls = st.one_of(
    st.builds(FindNotesRequest, provider=st.lists(texts, max_size=2), page=st.integers(0, 9)).map(
        lambda request: (FIND_NOTES, request)
    ),
    texts.filter(lambda text: text not in {"", ".", ".."}).flatmap(
        lambda id_: st.sampled_from(
            [
                (GET_NOTE, GetNoteRequest(id=id_)),
                (COPY_NOTE, CopyNoteRequest(id=id_, text=id_)),
                (PUT_NOTE, PutNoteRequest(note=Note(id=id_))),
                (PUT_NOTE, PutNoteRequest()),
                (SUBMIT_USAGE, SubmitUsageRequest(usage=UsageRecord(model_id=id_))),
            ]
        )
    ),
)
origins = st.sampled_from(
    ["http://h", "https://h:443", "http://h:8080/a%20b", "http://[::1]:8080", "https://EXÄMPLE.org/ü/"]
)
headers = st.dictionaries(
    st.text(string.ascii_lowercase + "-_", min_size=1, max_size=8).filter(lambda key: key[-4:] != "-bin"),
    st.text(string.printable[:90], max_size=8),
    max_size=4,
)


def same(exchange, *, asynchronous=False):
    """Whether httpx's request and ours are one: verb, URL and headers, in their order."""
    theirs = exchange.client_request(asynchronous=asynchronous)
    ours = exchange.pool_request(asynchronous=asynchronous)
    assert ours.method == theirs.method.encode()
    assert ours.headers == theirs.headers.raw
    url = theirs.url
    assert (ours.url.scheme, ours.url.host, ours.url.port) == (url.raw_scheme, url.raw_host, url.port)
    assert ours.url.target == url.raw_path
    return theirs, ours


@given(origins, calls, headers, st.sampled_from(["", "k", "é"]), st.booleans())
def test_a_call_is_the_request_that_httpx_would_make(origin, call, metadata, key, asynchronous):
    method, request = call
    made = context(method, key=key)
    for name, value in metadata.items():
        made.metadata.set(name, value)
    exchange = Exchange(origin_of(origin), request, made, 1000, own=True)
    theirs, ours = same(exchange, asynchronous=asynchronous)
    assert b"".join(ours.stream) == theirs.content


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_of_requests_is_chunked(asynchronous):
    async def records():
        for _ in range(3):
            yield SubmitUsageRequest(usage=UsageRecord(model_id="m"))

    exchange = StreamExchange("http://h", records(), context(STREAM_USAGE, key="k"), 1000, own=True)
    _, ours = same(exchange, asynchronous=asynchronous)
    assert (b"Transfer-Encoding", b"chunked") in ours.headers


@pytest.mark.parametrize("verb", ["POST", "PUT", "PATCH", "DELETE", "GET"])
@pytest.mark.parametrize("body", [None, b"", b"x"])
def test_a_body_or_none_has_the_length_that_httpx_gives_it(verb, body):
    exchange = Exchange("http://h", Note(), context(GET_HEALTH), 1000, own=True)
    exchange._http = exchange._http._replace(verb=verb, body=body)
    same(exchange)
    same(exchange, asynchronous=True)
