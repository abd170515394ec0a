"""The objects in a file: JSON lines, JSON documents and their arrays, and tables with a separator."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.normalizers.tolerant import decode_tolerantly
from llm_cost_ops.wire.json_keys import REPEATED, path_text, repeated_keys

__all__ = ["Line", "Table", "delimiter_of", "read_json"]

MAX_LINE = 16 * 1024 * 1024
MAX_VALUE = 64 * 1024 * 1024
_HEAD = 32 * 1024

_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "\\t": "\t"}
_PRETTY_ENDS = (b"{", b"[", b",")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_GAP = re.compile(r"[\s,]*")
_WORDS = {"unexpected end of data": "a quote is not closed, so that its cell has all the lines after it"}

# Made while the module is loaded, by one thread: see wire.json.decoder_of.
_values: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class Line(NamedTuple):
    """One object of a file: the number of its line, the bytes that it is known by, and its fields.

    `fields` is a dict, or the text of what is wrong with the line.
    """

    number: int
    raw: bytes
    fields: dict[str, Any] | str


def read_json(stream: io.BufferedReader[Any]) -> Iterator[Line]:
    """The objects of a file of JSON: one a line, or documents over several, whose arrays are taken apart.

    Empty lines are passed over. In a file of lines a bad one harms itself only; a document ends at what is
    not JSON. A value of a document may have 64 MiB, a line 16.
    """
    numbered = enumerate(_lines(stream), 1)
    for number, raw in numbered:
        text = raw.strip()
        if not text:
            continue
        if _begins_document(text):
            yield from _document(raw, number, stream)
            return
        yield _line(number, raw, text)
        break
    for number, raw in numbered:
        text = raw.strip()
        if text:
            yield _line(number, raw, text)


def _begins_document(text: bytes) -> bool:
    """Whether the first line of a file is the beginning of a document, or an array on one line."""
    if text[:1] == b"[":
        return text.endswith(_PRETTY_ENDS) or len(text) >= _HEAD or (b"{" in text and _complete(text))
    return text[:1] == b"{" and text.endswith(_PRETTY_ENDS)


def _complete(text: bytes) -> bool:
    try:
        decode_tolerantly(_values, text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(stream: io.BufferedReader[Any]) -> Iterator[bytes]:
    """Lines of bounded length: the rest of one that is too long is dropped.

    Of an array at the beginning of a file, which may be all of it, a piece is enough.
    """
    if stream.peek(1)[:1] == b"[":
        yield stream.readline(2 * _HEAD)
    while raw := stream.readline(MAX_LINE + 1):
        yield raw
        if len(raw) > MAX_LINE and not raw.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass


def _line(number: int, raw: bytes, text: bytes) -> Line:
    if len(raw) > MAX_LINE:
        return Line(number, raw, f"is longer than {MAX_LINE:,} bytes")
    return Line(number, text, _object(text))


def _object(text: bytes) -> dict[str, object] | str:
    try:
        fields = decode_tolerantly(_values, text)
        repeated = repeated_keys(text, msgspec.json.encode(fields))
    except UnicodeDecodeError:
        return "is not JSON: it is not UTF-8"
    except (ValueError, RecursionError) as error:
        why = str(error).removeprefix("JSON is malformed: ")
        return f"is not JSON: {'it ends before it is complete' if 'truncated' in why else why}"
    if repeated:
        return f"{path_text(repeated[0])} {REPEATED}"
    return fields if isinstance(fields, dict) else "is not a JSON object"


def _document(head: bytes, number: int, stream: io.BufferedReader[Any]) -> Iterator[Line]:
    """The values of a document, and the elements of an array at its top, each as soon as it is complete."""
    # Where a value ends is found by the parser, again with twice the text while there is not enough of it.
    text = _Text(head, stream)
    find = json.JSONDecoder(parse_int=len, parse_float=len).raw_decode
    depth, at = 0, 0
    while True:
        at = text.skip(at)
        if at < 0:
            if depth:
                yield Line(number + text.line(-1), b"", "is not JSON: it ends before it is complete")
            return
        sign = text.data[at]
        if sign == "[" and depth == 0:
            depth, at = 1, at + 1
            continue
        if sign == "]" and depth == 1:
            depth, at = 0, at + 1
            continue
        here = number + text.line(at)
        try:
            _, end = find(text.data, at)
        except (ValueError, RecursionError) as error:
            too_long = len(text.data) - at > MAX_VALUE
            if not too_long and not isinstance(error, RecursionError) and text.more():
                continue
            why = "is longer than 64 MiB" if too_long else _object(text.data[at:].encode("utf-8", "replace"))
            yield Line(here, b"", why if isinstance(why, str) else "is not JSON")
            return
        raw = text.data[at:end].encode("utf-8", "surrogateescape")
        yield Line(here, raw, _object(raw))
        at = text.drop(end)


class _Text:
    """A window of a document: what was read already is dropped, and more is loaded when it is needed."""

    def __init__(self, head: bytes, stream: io.BufferedReader[Any]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._stream = stream
        self._lines = self._counted = 0
        self.data = self._decoder.decode(head)

    def more(self) -> bool:
        piece = self._stream.read(max(65536, len(self.data)))
        self.data += self._decoder.decode(piece, final=not piece)
        return bool(piece)

    def skip(self, at: int) -> int:
        """Where the next value or bracket begins; -1 at the end."""
        while True:
            found = _GAP.match(self.data, at)
            at = found.end() if found else at
            if at < len(self.data):
                return at
            if not self.more():
                return -1

    def line(self, at: int) -> int:
        """How many lines lie before a place, which is not before the last one asked for; -1 is the end."""
        end = len(self.data) if at < 0 else at
        self._lines += self.data.count("\n", self._counted, end)
        self._counted = end
        return self._lines

    def drop(self, at: int) -> int:
        """Drop what lies before a place once it is much, and return the place in what is left."""
        if at < len(self.data) // 2:
            return at
        self.line(at)
        self._counted = 0
        self.data = self.data[at:]
        return 0


def delimiter_of(text: str) -> str:
    """The separator that --delimiter names: a character, or comma, semicolon, tab or pipe.

    Raises ConfigurationError for anything else.
    """
    found = _DELIMITERS.get(text.lower(), text)
    if len(found) != 1 or found in '"\r\n':
        raise ConfigurationError(
            "--delimiter must be one character, or comma, semicolon, tab or pipe", parameter="delimiter"
        )
    return found


class Table:
    """A file of rows with a header, such as CSV; `delimiter` is sniffed from the header when it is "".

    A first line `sep=;`, as Excel writes it, says it too. A row's fields are texts by column.
    `unfinished` says that the line of the last row that was given has no end.
    """

    def __init__(self, stream: io.BufferedReader[Any], delimiter: str = "") -> None:
        # Texts of calls stand in the cells of some exports. The limit is the whole process's.
        csv.field_size_limit(MAX_LINE)
        self._text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
        self._offset = 0
        self.unfinished = False
        try:
            first = self._next_line()
            stated = re.fullmatch(r'"?sep=(.)"?\s*', first)
            if stated:
                delimiter, self._offset = delimiter or stated[1], 1
                first = self._next_line()
            self.delimiter = delimiter or _sniffed(first)
            lines = itertools.chain([first], iter(self._next_line, ""))
            # Otherwise a quote that nothing closes makes all lines up to the next one a part of its cell.
            self._rows = csv.reader(lines, delimiter=self.delimiter, strict=True)
            self.columns = [column.strip() for column in next(self._rows, [])]
        except csv.Error as error:
            raise ConfigurationError(f"the header is not CSV: {error}", parameter="file") from None

    def __iter__(self) -> Iterator[Line]:
        while True:
            begun = self._number + 1
            try:
                row = next(self._rows, None)
            except csv.Error as error:
                upto = f" up to line {self._number}" if self._number > begun else ""
                yield Line(begun, b"", f"is not CSV{upto}: {_WORDS.get(str(error), error)}")
                continue
            if row is None:
                self._text.detach()
                return
            if row:
                yield self._line(row)

    def _next_line(self) -> str:
        """A line; "" at the end. csv.Error for one that is too long, the rest of which is dropped."""
        line = self._text.readline(MAX_LINE + 1)
        self.unfinished = not line.endswith(("\n", "\r"))
        if len(line) > MAX_LINE and self.unfinished:
            while (rest := self._text.readline(MAX_LINE)) and not rest.endswith(("\n", "\r")):
                pass
            # The reader counts the lines that it gets.
            self._offset += 1
            raise csv.Error(f"the line is longer than {MAX_LINE:,} characters")
        return line

    @property
    def _number(self) -> int:
        return self._rows.line_num + self._offset

    def _line(self, row: list[str]) -> Line:
        raw = "\x1f".join(row).encode("utf-8", "surrogateescape")
        if len(row) != len(self.columns):
            return Line(self._number, raw, f"has {len(row)} columns, the header {len(self.columns)}")
        for column, cell in zip(self.columns, row, strict=True):
            if not cell.isascii() and any("\udc80" <= letter <= "\udcff" for letter in cell):
                return Line(self._number, raw, f"column {column!r} holds bytes that are not UTF-8")
        return Line(self._number, raw, dict(zip(self.columns, row, strict=True)))


def _sniffed(header: str) -> str:
    plain = _QUOTED.sub("", header)
    return max(",;\t|", key=plain.count)
