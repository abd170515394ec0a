"""Lines come out of a body however it was cut and compressed, and hostile ones cost no memory."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops._gen.methods import EXPORT_USAGE, STREAM_USAGE
from llm_cost_ops.transports.http.ndjson import Lines, LineSplitter


def split(body: bytes, cuts: list[int], limit: int = 1000, encoding: str = "") -> list[bytes | None]:
    splitter = LineSplitter(limit, encoding)
    lines: list[bytes | None] = []
    start = 0
    for cut in [*sorted(cuts), len(body)]:
        lines += splitter.feed(body[start:cut])
        start = max(start, cut)
    return [*lines, *splitter.end()]


@given(
    st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b""))),
    st.lists(st.integers(0, 400)),
    st.booleans(),
    st.booleans(),
)
def test_cuts_and_compression_change_nothing(
    lines: list[bytes], cuts: list[int], ended: bool, zipped: bool
) -> None:
    body = b"\n".join(lines) + (b"\n" if ended else b"")
    expected = [None if len(line) > 20 else line for line in lines if line.strip() or len(line) > 20]
    sent = gzip.compress(body) if zipped else body
    assert split(sent, cuts, 20, "gzip" if zipped else "") == expected


def test_a_line_without_end_is_skipped_in_bounded_memory() -> None:
    splitter = LineSplitter(1000)
    tracemalloc.start()
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 65536)) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert list(splitter.feed(b"\n{}\n")) == [None, b"{}"]


def test_a_bomb_is_inflated_piece_by_piece() -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    tracemalloc.start()
    assert split(bomb, [], 1000, "gzip") == [None]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no gzip", "not what"),
        (gzip.compress(b"{}\n", mtime=0)[:-4], "truncated"),
        (gzip.compress(b"", mtime=0) + b"x", "more"),
    ],
)
def test_broken_compression(body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        split(body, [], 1000, "gzip")
    with pytest.raises(ValueError, match="not supported"):
        LineSplitter(1000, "br")


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        (b"{", "", "truncated"),
        (b"\xff", "", ""),
        (b'{"input_tokens": "x"}', "input_tokens", ""),
        (None, "", "longer than 1000 bytes"),
        (b"[]", "", ""),
    ],
)
def test_a_bad_line_is_a_request_that_says_so(line: bytes | None, field: str, words: str) -> None:
    request = Lines(STREAM_USAGE).request(line, 1000)
    assert request.records == []
    assert request.unknown_.error
    assert words.lower() in request.unknown_.error.lower()
    assert request.unknown_.error_field == field


def test_a_line_is_the_body_of_the_rule() -> None:
    line = b'{"organization_id":"acme"}'
    assert Lines(STREAM_USAGE).request(line, 1000).records[0].organization_id == "acme"
    response = Lines(EXPORT_USAGE).response(line)
    assert response.records[0].organization_id == "acme"
    assert b'"organization_id":"acme"' in Lines(EXPORT_USAGE).response_lines(response)
