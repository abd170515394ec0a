"""The text of a file as UTF-8: compressed or not, in the encodings that exports are written in."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["TextFile"]

_PIECE = 64 * 1024
_BOMS = (
    (codecs.BOM_UTF8, "utf-8", ""),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
# Every byte has a character: the five that Windows-1252 leaves out are what Latin-1 makes of them.
_CP1252 = {
    byte: bytes([byte]).decode("cp1252")
    for byte in range(0x80, 0xA0)
    if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}


class TextFile:
    """A binary stream as lines of UTF-8, a piece at a time; the stream stays the caller's.

    gzip is recognised by its first bytes, UTF-8, UTF-16 and UTF-32 by a byte order mark, UTF-16 without one
    by its zeros. A file that is ASCII up to a byte that is not UTF-8 is read as Windows-1252. `notes` then
    names what was found, `consumed` counts the bytes of the stream that were read, and `error` says why the
    text ended early.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._counted = _Counted(stream)
        self.notes: list[str] = []
        self.error = ""
        raw = io.BufferedReader(self._counted, _PIECE)
        source: BinaryIO = raw
        if self._counted.head == b"\x1f\x8b":
            self.notes.append("gzip")
            source = io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=raw)), _PIECE)
        self.lines = io.BufferedReader(_Pieces(self._decoded(source)), _PIECE)

    @property
    def consumed(self) -> int:
        """How many bytes of the stream were read."""
        return self._counted.count

    def _decoded(self, source: BinaryIO) -> Iterator[bytes]:
        try:
            head = source.read(_PIECE)
            encoding, skipped = self._encoding(head)
            pieces = _pieces(head[skipped:], source)
            if encoding == "utf-8":
                yield from self._utf8(pieces)
            else:
                decoder = codecs.getincrementaldecoder(encoding)()
                for piece in pieces:
                    yield decoder.decode(piece).encode()
                yield decoder.decode(b"", final=True).encode()
        except (EOFError, gzip.BadGzipFile, zlib.error):
            self.error = "the compressed file is broken or ends before it is complete"
        except UnicodeDecodeError as error:
            self.error = f"the file is not {self.notes[-1]} from here on: {error.reason}"

    def _encoding(self, head: bytes) -> tuple[str, int]:
        for mark, encoding, name in _BOMS:
            if head.startswith(mark):
                self.notes += [name] if name else []
                return encoding, len(mark)
        if len(head) >= 2 and b"\x00" in head[:2] and head[:2] != b"\x00\x00":
            self.notes.append("UTF-16")
            return ("utf-16-le" if head[1] == 0 else "utf-16-be"), 0
        return "utf-8", 0

    def _utf8(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces as they are, from a byte on that is not UTF-8 those of Windows-1252."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        ascii_so_far = True
        for piece in pieces:
            waiting = decoder.getstate()[0]
            data = waiting + piece
            try:
                ascii_so_far = decoder.decode(piece).isascii() and ascii_so_far
            except UnicodeDecodeError as error:
                if not ascii_so_far or not data[: error.start].isascii():
                    # It has letters in UTF-8, so this is a mistake in one place, which is found there.
                    yield data
                    yield from pieces
                    return
                self.notes.append("Windows-1252, as it is not UTF-8")
                yield _from_cp1252(data)
                yield from map(_from_cp1252, pieces)
                return
            held = len(decoder.getstate()[0])
            yield data[: len(data) - held]
        yield decoder.getstate()[0]


def _from_cp1252(piece: bytes) -> bytes:
    return piece.decode("latin-1").translate(_CP1252).encode()


def _pieces(head: bytes, source: BinaryIO) -> Iterator[bytes]:
    yield head
    while piece := source.read(_PIECE):
        yield piece


class _Counted(io.RawIOBase):
    """A stream, the number of bytes that were read of it, and its first two."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.count = 0
        # A pipe may give less than it is asked for.
        self.head = b""
        while len(self.head) < 2 and (piece := stream.read(2 - len(self.head))):
            self.head += piece
        self._begun = bool(self.head)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        piece = self.head if self._begun else self._stream.read(len(view))
        self._begun = False
        view[: len(piece)] = piece
        self.count += len(piece)
        return len(piece)


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        view = memoryview(buffer)
        size = min(len(view), len(self._left))
        view[:size] = self._left[:size]
        self._left = self._left[size:]
        return size
