"""Fields of a record from texts: cells of a table, values of --set, and what --map takes from columns."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any, get_type_hints

import msgspec

from llm_cost_ops._gen.codecs import USAGE_RECORD
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.types import Operation, Outcome, UsageQuality, UsageRecord
from llm_cost_ops.wire import coerce
from llm_cost_ops.wire.decimals import from_json_number, plain
from llm_cost_ops.wire.open_enum import OpenEnum
from llm_cost_ops.wire.validation import nearest, no_member

__all__ = ["FIELDS", "Mapping", "assignments", "check_once", "overlay", "put", "value_at"]

# The fields of a record whose values have one form: in CSV and in --set they come as text.
_INTEGERS = {name for name, kind in get_type_hints(UsageRecord).items() if kind in (int, int | None)}
_ENUMS: dict[str, type[OpenEnum]] = {"operation": Operation, "outcome": Outcome, "quality": UsageQuality}
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_MAPS = ("labels", "meters", "modality", "metadata")
FIELDS = {field.name for field in msgspec.structs.fields(UsageRecord)} - {"unknown_"}


def put(fields: dict[str, Any], path: str, text: str) -> None:
    """Set a field by its path, such as labels.team. Raises ValueError for text that it can't be."""
    name, _, inner = path.partition(".")
    if name in _MAPS and not inner:
        value: Any = _json_object(name, text)
    elif name in _INTEGERS or name in ("meters", "modality"):
        # A column of pandas in which some counts are missing has "1000.0".
        whole = re.fullmatch(r"(-?[0-9]{1,19})(?:\.0)?", text)
        if not whole:
            raise ValueError(f"{path} must be a whole number, not {text[:40]!r}")
        value = int(whole[1])
    elif name == "tags":
        value = _tags(text)
    elif name == "observation":
        value = _TRUTHS.get(text.lower())
        if value is None:
            raise ValueError(f"observation must be true or false, not {text[:40]!r}")
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
        value = _amount(text) if name == "reported_cost" else text
    if inner:
        fields.setdefault(name, {})[inner] = value
    else:
        fields[name] = value


def _amount(text: str) -> str:
    """An amount, with an exponent too, as Python writes one below 0.0001."""
    if not isinstance(coerce.decimal(text), str):
        return text
    try:
        return plain(from_json_number(text))
    except ValueError:
        raise ValueError(f"reported_cost must be a decimal such as 0.015, not {text[:40]!r}") from None


def _json_object(name: str, text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, not {text[:40]!r}")
    return value


def _tags(text: str) -> list[str]:
    if text.startswith("["):
        try:
            return list(msgspec.json.decode(text, type=list[str]))
        except (msgspec.DecodeError, RecursionError):
            pass
    return [tag for tag in text.split(",") if tag]


def assignments(option: str, texts: list[str]) -> dict[str, str]:
    """The fields that an option gives as FIELD=TEXT. Raises ConfigurationError for one that it can't be."""
    found = {}
    for text in texts:
        field, equals, value = text.partition("=")
        name = field.partition(".")[0]
        if not equals or name not in FIELDS:
            meant = nearest(name, FIELDS)
            meant = f": did you mean {meant}?" if meant else ""
            raise ConfigurationError(
                f"--{option} {text}: must be FIELD=…, where FIELD is one of a usage record's, "
                f"such as input_tokens, model_id or labels.team{meant}",
                parameter=option,
            )
        if option == "set":
            try:
                put({}, field, value)
            except ValueError as error:
                raise ConfigurationError(f"--set {text}: {error}", parameter=option) from None
        found[field] = value
    return found


def overlay(record: UsageRecord, given: dict[str, str]) -> None:
    """Set the fields that the caller gave, whatever the record says; entries of maps are added."""
    if not given:
        return
    fields: dict[str, Any] = {}
    for path, text in given.items():
        put(fields, path, text)
    stated = USAGE_RECORD.decode_json(msgspec.json.encode(fields))
    for name in fields:
        value = getattr(stated, name)
        setattr(record, name, {**getattr(record, name), **value} if isinstance(value, dict) else value)
    if {"input_tokens", "output_tokens"} & fields.keys() and "total_tokens" not in fields:
        record.total_tokens = None


def check_once(read: Iterable[str], columns: list[str]) -> None:
    """Raise ConfigurationError for a column that is read and that a table has twice."""
    found = Counter(columns)
    for column in read:
        if found[column] > 1:
            raise ConfigurationError(
                f"the file has the column {column!r} more than once: rename all but the one that counts",
                parameter="file",
            )


class Mapping:
    """What --map says: which columns, or sums of columns, a record's fields are taken from.

    A column of a JSON file is a path such as usage.prompt_tokens, which an object need not have, unless it
    holds the input or the output.
    """

    def __init__(self, given: dict[str, str]) -> None:
        self._given = given
        self._unseen = set(given)

    def __bool__(self) -> bool:
        return bool(self._given)

    def check(self, columns: list[str]) -> None:
        """Raise ConfigurationError for a column that a table does not have."""
        read = []
        for field, source in self._given.items():
            for column in _columns(source, columns.__contains__):
                if column not in columns:
                    known = ", ".join(columns)
                    raise ConfigurationError(
                        f"--map {field}={source}: the file has no column {column!r}, only {known}",
                        parameter="map",
                    )
                read.append(column)
        check_once(read, columns)
        self._unseen.clear()

    def apply(self, row: dict[str, object]) -> dict[str, object]:
        """The fields of a record. Raises ValueError with the column whose value it can't be."""
        fields: dict[str, Any] = {}
        wrong = []
        for field, source in self._given.items():
            columns = [name for name in _columns(source, partial(_has, row)) if _has(row, name)]
            if columns:
                self._unseen.discard(field)
            elif field in ("input_tokens", "output_tokens", "total_tokens"):
                wrong.append(f"has no {source!r}, which is to be {field}")
            texts = [(name, _text(value_at(row, name))) for name in columns]
            try:
                _put_sum(fields, field, [pair for pair in texts if pair[1]])
            except ValueError as error:
                wrong.append(str(error))
        if wrong:
            raise ValueError("; ".join(wrong))
        return fields

    def unseen(self) -> list[str]:
        """What --map names and no object had."""
        return [f"--map {field}={self._given[field]}: no object has that" for field in sorted(self._unseen)]


def _columns(source: str, known: Callable[[str], bool]) -> list[str]:
    return [source] if known(source) or "+" not in source else [part.strip() for part in source.split("+")]


def _put_sum(fields: dict[str, object], field: str, texts: list[tuple[str, str]]) -> None:
    total = 0
    for column, text in texts:
        try:
            if len(texts) == 1:
                put(fields, field, text)
                return
            part: dict[str, Any] = {}
            put(part, field, text)
            value = part[field.partition(".")[0]]
            value = value[field.partition(".")[2]] if isinstance(value, dict) else value
            if type(value) is not int:
                raise ValueError(f"{field} can't be a sum of columns")
        except ValueError as error:
            raise ValueError(f"column {column!r}: {error}") from None
        total += value
    if texts:
        put(fields, field, str(total))


def _has(row: dict[str, object], path: str) -> bool:
    return value_at(row, path, _MISSING) is not _MISSING


def value_at(row: dict[str, object], path: str, missing: object = None) -> object:
    """The value of a column, or at a path through objects; `missing` where there is none."""
    if path in row:
        return row[path]
    found: Any = row
    for step in path.split("."):
        if not isinstance(found, dict) or step not in found:
            return missing
        found = found[step]
    return found


_MISSING = object()


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
