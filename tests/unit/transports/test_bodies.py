"""Bodies as they were before compression, however they come; both who collects one and who cuts lines."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.transports.http.ndjson import LineSplitter
from llm_cost_ops.transports.net.bodies import PIECE, BodyTooLargeError, BoundedBody, Inflater

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
}
COMPRESSED = ["gzip", "deflate"]
encodings = st.sampled_from(sorted(ENCODERS))


def _chunks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _whole(encoding: str, chunks: Iterator[bytes] | list[bytes]) -> bytes:
    body = BoundedBody(1 << 30, encoding)
    for chunk in chunks:
        body.feed(chunk)
    return body.whole()


def _lines(encoding: str, chunks: Iterator[bytes] | list[bytes]) -> list[bytes | None]:
    splitter = LineSplitter(1 << 30, encoding)
    found = [line for chunk in chunks for line in splitter.feed(chunk)]
    return found + list(splitter.end())


@given(encodings, st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 60))
def test_a_body_comes_in_any_chunks(encoding: str, parts: list[bytes], size: int) -> None:
    data = b"\n".join(parts)
    sent = ENCODERS[encoding](data)
    assert _whole(encoding, _chunks(sent, size)) == data
    assert _lines(encoding, _chunks(sent, size)) == [line for line in data.split(b"\n") if line.strip()]


@pytest.mark.parametrize("read", [_whole, _lines])
@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_body_that_stops_before_its_end_is_an_error_wherever_it_stops(
    encoding: str, read: Callable[..., object]
) -> None:
    sent = ENCODERS[encoding](b'{"records": 1}\n' * 3)
    for length in range(1, len(sent)):
        with pytest.raises(ValueError, match="truncated"):
            read(encoding, [sent[:length]])
    assert not read(encoding, []), "nothing at all is an empty body"


@pytest.mark.parametrize("read", [_whole, _lines])
@pytest.mark.parametrize("encoding", COMPRESSED)
def test_bytes_after_the_end_are_an_error(encoding: str, read: Callable[..., object]) -> None:
    sent = ENCODERS[encoding](b"text\n")
    for chunks in ([sent + b"x"], [sent, b"x"]):
        with pytest.raises(ValueError, match="more bytes than it should"):
            read(encoding, chunks)


def test_a_small_chunk_that_becomes_much_comes_in_pieces() -> None:
    pieces = list(Inflater("gzip").feed(gzip.compress(bytes(10 * PIECE))))
    assert len(pieces) >= 10
    assert max(map(len, pieces)) <= PIECE
    body = BoundedBody(2 * PIECE, "gzip")
    with pytest.raises(BodyTooLargeError):
        body.feed(gzip.compress(bytes(10 * PIECE)))


@pytest.mark.parametrize("kind", [Inflater, lambda encoding: LineSplitter(9, encoding)])
def test_other_encodings_are_refused_by_name(kind: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="'br' is not supported"):
        kind("br")
