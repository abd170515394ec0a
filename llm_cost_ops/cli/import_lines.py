"""The lines of a file of usage, and what is told of one that can't be read, in the words of who wrote it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple

import msgspec

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.types import Operation, Outcome, UsageQuality, UsageRecord
from llm_cost_ops.wire import coerce
from llm_cost_ops.wire.json_keys import REPEATED, path_text, repeated_keys
from llm_cost_ops.wire.open_enum import OpenEnum
from llm_cost_ops.wire.validation import no_member

__all__ = ["FIELDS", "Line", "assignments", "put", "read_csv", "read_jsonl", "reason_of"]

MAX_LINE = 16 * 1024 * 1024

# What JSON's types are called by those who write files.
_WORDS = {
    "int": "a whole number",
    "float": "a number with a fraction",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_TYPES = re.compile(r"\b(?:an? )?(int|float|str|bool|array|object)\b")


class Line(NamedTuple):
    """One line of a file: its number, the bytes that it is known by, where it ends, and its fields.

    `fields` is a dict, or the text of what is wrong with the line.
    """

    number: int
    raw: bytes
    end: int
    fields: dict[str, Any] | str


def read_jsonl(stream: BinaryIO) -> Iterator[Line]:
    """The lines of a JSONL file; empty ones are passed over."""
    end = 0
    for number, raw in enumerate(_lines(stream), 1):
        end += len(raw)
        text = raw.strip()
        if not text:
            continue
        if len(raw) > MAX_LINE:
            yield Line(number, raw, end, f"is longer than {MAX_LINE:,} bytes")
            continue
        try:
            fields = msgspec.json.decode(text)
            repeated = repeated_keys(text, msgspec.json.encode(fields))
        except (ValueError, RecursionError) as error:
            why = str(error).removeprefix("JSON is malformed: ")
            why = "it ends before it is complete" if "truncated" in why else why
            yield Line(number, text, end, f"is not JSON: {why}")
            continue
        if repeated:
            yield Line(number, text, end, f"{path_text(repeated[0])} {REPEATED}")
            continue
        yield Line(number, text, end, fields if isinstance(fields, dict) else "is not a JSON object")


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of bounded length: the rest of one that is too long is dropped."""
    while raw := stream.readline(MAX_LINE + 1):
        if len(raw) > MAX_LINE and not raw.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
        yield raw


def read_csv(stream: BinaryIO, mapping: dict[str, str]) -> Iterator[Line]:
    """The rows of a CSV file with a header; `mapping` takes fields from columns."""
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield from _rows(csv.reader(text), mapping)
    finally:
        # The stream belongs to the caller.
        text.detach()


def _rows(rows: Any, mapping: dict[str, str]) -> Iterator[Line]:
    header: list[str] = next(rows, [])
    for field, column in mapping.items():
        if column not in header:
            raise ConfigurationError(
                f"--map {field}={column}: the file has no column {column!r}, only {', '.join(header)}",
                parameter="map",
            )
    chosen = {field: header.index(column) for field, column in mapping.items()}
    end = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Line(rows.line_num, b"", end, f"is not CSV: {error}")
            continue
        raw = "\x1f".join(row).encode("utf-8", "surrogateescape")
        end += len(raw) + 2
        if not row:
            continue
        if len(row) != len(header):
            yield Line(rows.line_num, raw, end, f"has {len(row)} columns, the header {len(header)}")
            continue
        yield Line(rows.line_num, raw, end, _fields_of(row, chosen, header))


def _fields_of(row: list[str], chosen: dict[str, int], header: list[str]) -> dict[str, Any] | str:
    fields: dict[str, Any] = {}
    wrong = []
    for field, index in chosen.items():
        if row[index] == "":
            continue
        try:
            put(fields, field, row[index])
        except ValueError as error:
            wrong.append(f"column {header[index]!r}: {error}")
    return "; ".join(wrong) or fields


# The fields of a record whose values have one form: in CSV and in --set they come as text.
_INTEGERS = {
    field.name
    for field in msgspec.structs.fields(UsageRecord)
    if "tokens" in field.name or field.name in ("request_count", "latency_ms", "time_to_first_token_ms")
}
_ENUMS: dict[str, type[OpenEnum]] = {"operation": Operation, "outcome": Outcome, "quality": UsageQuality}
FIELDS = {field.name for field in msgspec.structs.fields(UsageRecord)} - {"unknown_"}


def put(fields: dict[str, Any], path: str, text: str) -> None:
    """Set a field by its path, such as labels.team. Raises ValueError for text that it can't be."""
    name, _, inner = path.partition(".")
    if name in _INTEGERS or name in ("meters", "modality"):
        if not re.fullmatch(r"-?[0-9]{1,19}", text):
            raise ValueError(f"{path} must be a whole number, not {text[:40]!r}")
        value: Any = int(text)
    elif name == "tags":
        value = [tag for tag in text.split(",") if tag]
    elif name == "metadata" and not inner:
        value = _metadata(text)
    elif name == "timestamp":
        value = coerce.instant(text)
        if not isinstance(value, datetime):
            example = "a time such as 2026-01-31 or 2026-01-31T12:00:00Z"
            raise ValueError(f"timestamp must be {example}, not {text[:40]!r}")
    elif name in _ENUMS:
        value = coerce.member(_ENUMS[name], text)
        if not isinstance(value, OpenEnum):
            raise ValueError(f"{name} {no_member(text, _ENUMS[name])}")
    else:
        value = text
        if name == "reported_cost" and isinstance(coerce.decimal(text), str):
            raise ValueError(f"reported_cost must be a decimal such as 0.015, not {text[:40]!r}")
    if inner:
        fields.setdefault(name, {})[inner] = value
    else:
        fields[name] = value


def _metadata(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"metadata must be a JSON object, not {text[:40]!r}") from None


def assignments(option: str, texts: list[str]) -> dict[str, str]:
    """The fields that an option gives as FIELD=TEXT. Raises ConfigurationError for one that it can't be."""
    found = {}
    for text in texts:
        field, equals, value = text.partition("=")
        name = field.partition(".")[0]
        if not equals or name not in FIELDS:
            raise ConfigurationError(
                f"--{option} {text}: must be FIELD=…, where FIELD is one of a usage record's, "
                f"such as input_tokens, model_id or labels.team",
                parameter=option,
            )
        if option == "set":
            try:
                put({}, field, value)
            except ValueError as error:
                raise ConfigurationError(f"--set {text}: {error}", parameter=option) from None
        found[field] = value
    return found


def reason_of(error: ValueError) -> str:
    """Why a line is no record."""
    text = str(error)
    if "expected " in text:
        path, _, rest = text.partition("expected ")
        text = f"{path}expected {_TYPES.sub(lambda found: _WORDS[found[1]], rest)}"
    return text.replace(
        "pass api= or provider=",
        'give "model_id" and "input_tokens", or put the response under "response" beside its "provider"',
    )
