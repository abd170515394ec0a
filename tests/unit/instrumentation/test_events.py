"""Events are read alike however their bytes are cut, and pass as they came."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.instrumentation.events import EventReader, data_of

USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
DATA = st.one_of(
    st.text(max_size=20).map(lambda text: json.dumps({"choices": [{"delta": text}], "usage": None})),
    st.just(json.dumps({"choices": [{}], "usage": USAGE})),
    st.just(json.dumps({"choices": [], "prompt_filter_results": []})),
    st.just("[DONE]"),
)
UNASKED = json.dumps({"choices": [], "usage": USAGE})
NEWLINE = st.sampled_from(["\n", "\r\n", "\r"])


def pieces(body: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


EVENT = st.tuples(st.sampled_from(["data: ", "data:", "event: x\ndata: ", ": ping\n\ndata: "]), DATA)


@given(
    st.lists(EVENT, max_size=12),
    NEWLINE,
    st.lists(st.integers(0, 5000), max_size=8),
    st.booleans(),
    st.booleans(),
)
def test_all_passes_but_the_chunk_that_nobody_asked_for(
    found: list[tuple[str, str]], newline: str, cuts: list[int], whole: bool, mark: bool
) -> None:
    shown = [f"{start}{data}\n\n".replace("\n", newline).encode() for start, data in found]
    if mark and len(shown) > 1:
        shown[0] = b"\xef\xbb\xbf" + shown[0]
    if not whole and shown:
        shown[-1] = shown[-1].rstrip()
    unasked = f"data: {UNASKED}{newline}{newline}".encode()
    body = b"".join([*shown[:-1], unasked, *shown[-1:]])
    hiding, plain = EventReader(hide=True), EventReader()
    parts = pieces(body, cuts)
    assert b"".join([*map(hiding.feed, parts), hiding.rest()]) == b"".join(shown)
    assert b"".join([*map(plain.feed, parts), plain.rest()]) == body
    assert hiding.events() == plain.events()
    datas = [data.encode() for _, data in found]
    assert plain.events() == [*datas[:-1], UNASKED.encode(), *datas[-1:]]


@given(st.integers(0, 400), st.integers(0, 40))
def test_of_a_long_stream_the_ends_and_the_usage_are_kept(plain: int, stating: int) -> None:
    reader = EventReader()
    for number in range(plain):
        reader.feed(b'data: {"n": %d}\n\n' % number)
    for number in range(stating):
        reader.feed(b'data: {"s": %d, "usage": {"x": 1}}\n\n' % number)
    kept = reader.events()
    assert len(kept) <= 80
    assert kept == sorted(kept, key=lambda data: (b"usage" in data, json.loads(data).get("n", 0)))
    if stating:
        assert json.loads(kept[-1])["s"] == stating - 1
    elif plain:
        assert json.loads(kept[-1])["n"] == plain - 1


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_a_stream_that_comes_byte_by_byte(newline: bytes) -> None:
    lines = [b"\xef\xbb\xbfevent: x", b'data: {"a":', b'data:"b"}', b"id: 1", b"", *[b": ping", b""] * 999]
    body = newline.join([*lines, b'data:{"c": 1}', b"", b"data: [DONE]"])
    for hide in (False, True):
        reader = EventReader(hide=hide)
        passed = [reader.feed(body[at : at + 1]) for at in range(len(body))]
        assert b"".join([*passed, reader.rest()]) == body
        assert reader.events() == [b'{"a":\n"b"}', b'{"c": 1}', b"[DONE]"]


def test_the_lines_of_an_event_are_joined() -> None:
    assert data_of(b": comment\r\nevent: x\r\ndata: a\r\ndata:b\r\nid: 1\r\n\r\n") == b"a\nb"
    assert data_of(b": ping\n\n") == b""


@pytest.mark.parametrize("hide", [True, False])
def test_of_a_stream_without_an_end_of_an_event_no_more_is_held(
    monkeypatch: pytest.MonkeyPatch, hide: bool
) -> None:
    monkeypatch.setattr("llm_cost_ops.instrumentation.events._MAX_EVENT", 10_000)
    reader = EventReader(hide=hide)
    shown = b'data: {"n": 1}\n\n'
    parts = [shown, *[b"x" * 999] * 50, b"\n\n", f"data: {UNASKED}\n\n".encode()]
    passed = [reader.feed(part) for part in parts]
    assert b"".join([*passed, reader.rest()]) == b"".join(parts)
    assert max(map(len, passed)) < (11_000 if hide else 1000)
    assert reader.events() == [b'{"n": 1}']
