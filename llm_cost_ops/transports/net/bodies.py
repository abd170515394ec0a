"""Bodies of bounded size, compressed or not."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

__all__ = ["BodyTooLargeError", "BoundedBody", "Inflater"]

PIECE = 256 * 1024


class BodyTooLargeError(ValueError):
    """A body is larger than it may be, as it came or decompressed."""


class Inflater:
    """Gives a body as it was before its compression, in pieces of at most 256 KiB.

    `encoding` is the Content-Encoding: "", "identity", "gzip", "x-gzip" or "deflate"; any other
    raises ValueError, as do bytes that are not of the encoding.
    """

    def __init__(self, encoding: str = "") -> None:
        encoding = encoding.strip().lower()
        if encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
            raise ValueError(f"the content encoding {encoding[:40]!r} is not supported")
        self._inflate = None if encoding in {"", "identity"} else zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._fed = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What a chunk becomes: a small one may become much. Raises ValueError for broken compression."""
        self._fed = self._fed or bool(chunk)
        if self._inflate is None:
            yield chunk
            return
        try:
            while chunk and not self._inflate.eof:
                yield self._inflate.decompress(chunk, PIECE)
                chunk = self._inflate.unconsumed_tail
        except zlib.error as error:
            raise ValueError(f"the body is not what its content encoding says: {error}") from None
        if self._inflate.eof and (chunk or self._inflate.unused_data):
            raise ValueError("the compressed body has more bytes than it should")

    def end(self) -> Iterator[bytes]:
        """What is left. Raises ValueError when compressed data stopped before their end."""
        if self._inflate is not None:
            yield self._inflate.flush()
            if self._fed and not self._inflate.eof:
                raise ValueError("the compressed body is truncated")


class BoundedBody:
    """Collects a body of at most `limit` bytes after decompression.

    Raises BodyTooLargeError, and ValueError as an Inflater of the `encoding` does.
    """

    def __init__(self, limit: int, encoding: str = "") -> None:
        self._inflater = Inflater(encoding)
        self._limit = limit
        # One buffer: a part of a byte takes forty as an object of its own.
        self._data = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Add what came. Raises BodyTooLargeError, or ValueError for broken compression."""
        for _ in self.inflate(chunk):
            pass

    def inflate(self, chunk: bytes) -> Iterator[None]:
        """As `feed`, with a stop after each piece: a small chunk may become a large part of a body."""
        for piece in self._inflater.feed(chunk):
            self._add(piece)
            yield

    def whole(self) -> bytes:
        """The whole body. Raises ValueError when compressed data stopped before their end."""
        for piece in self._inflater.end():
            self._add(piece)
        return self.so_far()

    def so_far(self) -> bytes:
        """What came of it until now."""
        return bytes(self._data)

    def _add(self, data: bytes) -> None:
        if len(self._data) + len(data) > self._limit:
            raise BodyTooLargeError(f"the body is larger than {self._limit} bytes")
        self._data += data
