"""The text of files and the objects in it: every encoding, compression and layout gives the same objects."""

from __future__ import annotations

import csv
import gzip
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.imports import shapes
from llm_cost_ops.imports.shapes import Line, Table, read_json
from llm_cost_ops.imports.text import TextFile

OBJECTS = st.lists(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.one_of(
            st.integers(-(2**53), 2**53),
            st.text(max_size=20),
            st.none(),
            st.booleans(),
            st.lists(st.integers(0, 9), max_size=3),
            st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
        ),
        max_size=4,
    ),
    min_size=1,
    max_size=6,
)
# More letters than a piece that is read at once, so that values and letters lie across pieces.
PADDING = "ä" * 40_000


class Drip(io.RawIOBase):
    """A stream that gives a few bytes at a time, as a pipe may."""

    def __init__(self, data: bytes, size: int) -> None:
        self._left = io.BytesIO(data)
        self._size = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._left.read(self._size if size < 0 else min(size, self._size))


def text_of(data: bytes, size: int = 1 << 20) -> tuple[bytes, TextFile]:
    dripping: Any = Drip(data, size)  # it has all that is used of a file
    file = TextFile(dripping)
    return file.lines.read(), file


def read(data: bytes, size: int = 1 << 20) -> list[Line]:
    dripping: Any = Drip(data, size)
    return list(read_json(TextFile(dripping).lines))


LAYOUTS: dict[str, Any] = {
    "lines": lambda objects: "\n".join(json.dumps(each, ensure_ascii=False) for each in objects),
    "crlf": lambda objects: "\r\n\r\n".join(json.dumps(each) for each in objects) + "\r\n",
    "array": lambda objects: json.dumps(objects, ensure_ascii=False),
    "pretty": lambda objects: json.dumps(objects, indent=2),
    "tight": lambda objects: "[\n" + ",\n".join(json.dumps(each) for each in objects) + "\n]\n",
    "after another": lambda objects: "\n".join(json.dumps({"a": 1, **each}, indent=4) for each in objects),
}


@given(OBJECTS, st.sampled_from(sorted(LAYOUTS)), st.sampled_from([1, 7, 4096]), st.booleans())
def test_objects_are_the_same_in_every_layout(
    objects: list[dict[str, Any]], layout: str, size: int, padded: bool
) -> None:
    if padded:
        objects = [*objects, {"pad": PADDING}]
        size = max(size, 4096)
    found = [line.fields for line in read(LAYOUTS[layout](objects).encode(), size)]
    wanted = [{"a": 1, **each} for each in objects] if layout == "after another" else objects
    assert found == wanted


@given(
    st.text(st.characters(codec="cp1252", exclude_characters="\x00\r\n"), min_size=1),
    st.sampled_from([1, 5, 1 << 20]),
)
def test_every_encoding_is_recognised(text: str, size: int) -> None:
    whole = f"input;output\n{text}\n" * 3
    forms = {
        "utf-8": whole.encode(),
        "utf-8-sig": whole.encode("utf-8-sig"),
        "utf-16": whole.encode("utf-16"),
        "utf-16-le": whole.encode("utf-16-le"),
        "utf-16-be": whole.encode("utf-16-be"),
        "utf-32": whole.encode("utf-32"),
    }
    for name, data in forms.items():
        for packed in (data, gzip.compress(data), gzip.compress(data[:9]) + gzip.compress(data[9:])):
            got, file = text_of(packed, size)
            assert got.decode() == whole, name
            assert file.consumed == len(packed)
            assert not file.error
    got, file = text_of(whole.encode("cp1252"), size)
    if _is_no_utf8(whole.encode("cp1252")):
        assert got.decode() == whole
        assert file.notes == ["Windows-1252, as it is not UTF-8"]


def _is_no_utf8(data: bytes) -> bool:
    """Whether the first letter beyond ASCII is none of UTF-8; where it is one, it may well be meant."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].isascii()
    return False


def test_one_wrong_byte_does_not_spoil_the_letters_before_it() -> None:
    data = (
        'x\n{"a": "ä"}\n{"a": "\xe4"}\n'.encode()
        .replace(b"\xc3\xa4", b"\xe4", 2)
        .replace(b"\xe4", b"\xc3\xa4", 1)
    )
    got, file = text_of(data)
    assert got == data
    assert not file.notes
    assert [line.fields for line in read(data)][1:] == [{"a": "ä"}, "is not JSON: it is not UTF-8"]


@pytest.mark.parametrize("cut", [12, -9, -1])
def test_a_broken_gzip_says_so(cut: int) -> None:
    _, file = text_of(gzip.compress(b"abc" * 1000)[:cut])
    assert file.error == "the compressed file is broken or ends before it is complete"


def test_lines_of_a_document_are_numbered_and_its_end_is_missed() -> None:
    lines = read(b'[\n  {"a": 1},\n\n  {"b":\n 2}\n,  5, {"c": 1, "c": 2}')
    assert [(line.number, line.fields) for line in lines] == [
        (2, {"a": 1}),
        (4, {"b": 2}),
        (6, "is not a JSON object"),
        (6, "c is given more than once"),
        (6, "is not JSON: it ends before it is complete"),
    ]


def test_a_document_ends_at_what_is_not_json() -> None:
    lines = read(b'[\n {"a": 1},\n {"b": oops},\n {"c": 1}]')
    assert lines[0].fields == {"a": 1}
    assert isinstance(lines[1].fields, str)
    assert lines[1].number == 3
    assert len(lines) == 2


def test_a_bad_first_line_harms_itself_only() -> None:
    found = [line.fields for line in read(b'{"a": \n{"b": 1}\n')]
    assert found == ["is not JSON: it ends before it is complete", {"b": 1}]


def table_of(text: str) -> Table:
    return Table(io.BufferedReader(io.BytesIO(text.encode())))  # type: ignore[arg-type]  # a raw one


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=8)


ROWS = st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=4)


@given(ROWS, st.sampled_from(",;\t|"), st.booleans())
def test_a_table_is_the_same_with_each_delimiter(rows: list[list[str]], delimiter: str, stated: bool) -> None:
    columns = ["model", 'the "best"; of, all | them', "tokens"]
    out = io.StringIO(newline="")
    if stated:
        out.write(f"sep={delimiter}\r\n")
    csv.writer(out, delimiter=delimiter).writerows([columns, *rows])
    table = table_of(out.getvalue())
    assert table.delimiter == delimiter
    assert [line.fields for line in table] == [dict(zip(columns, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        ('b,"2\n', " up to line 4: a quote is not closed, so that its cell has all the lines after it"),
        ('b,"2\nc,"3"\n', " up to line 4: ',' expected after '\"'"),
        ('b,"2"0\n', ": ',' expected after '\"'"),
    ],
)
def test_a_stray_quote_takes_no_lines_away_unsaid(spoiled: str, why: str) -> None:
    data = f"model,tokens\na,1\n{spoiled}d,4\n"
    lines = list(table_of(data))
    assert lines[0].fields == {"model": "a", "tokens": "1"}
    assert (lines[1].number, lines[1].fields) == (3, f"is not CSV{why}")
    assert [line.fields for line in lines[2:]] == [{"model": "d", "tokens": "4"}][: "not closed" not in why]


def test_a_line_of_a_table_that_is_too_long_harms_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "MAX_LINE", 20)
    monkeypatch.setattr(csv, "field_size_limit", lambda _: None)  # it is the whole process's
    long = "b," + "2" * 100
    data = f"model,tokens\na,1\n{long}\nc,3\n{long}"
    lines = list(table_of(data))
    why = "is not CSV: the line is longer than 20 characters"
    assert [(line.number, line.fields) for line in lines] == [
        (2, {"model": "a", "tokens": "1"}),
        (3, why),
        (4, {"model": "c", "tokens": "3"}),
        (5, why),
    ]
    with pytest.raises(ConfigurationError, match="the header is not CSV: the line is longer"):
        table_of(long)
