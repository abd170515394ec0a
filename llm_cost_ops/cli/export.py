"""Writes recorded usage as CSV or JSONL, a page at a time."""

from __future__ import annotations

import argparse
import csv
import io
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import msgspec

from llm_cost_ops._gen.codecs import USAGE_RECORD
from llm_cost_ops.cli.options import filters_of
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.types import UsageRecord

__all__ = ["csv_lines", "export", "jsonl_lines"]

PAGE = 1000


def export(options: argparse.Namespace) -> int:
    """The `export` command; memory is that of a page, however many there are."""
    name = options.format or _format_of(options.output or "")
    lines: Callable[[Iterable[UsageRecord]], Iterator[bytes]] = {"csv": csv_lines, "jsonl": jsonl_lines}[name]
    with open_client(options) as client:
        records = client.usage.get_history(
            **filters_of(options), page_size=PAGE, sort="timestamp", order="asc"
        )
        if options.output:
            count = _replace(Path(options.output), lines(records)) - (name == "csv")
            print(f"{count:,} records in {options.output}", file=sys.stderr)
        else:
            _write(sys.stdout.buffer, lines(records))
            sys.stdout.flush()
    return 0


def _format_of(output: str) -> str:
    """The format that a file's name says; JSONL where it says none. ConfigurationError for any other."""
    suffix = Path(output).suffix.lower()
    known = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", "": "jsonl"}
    if suffix not in known:
        raise ConfigurationError(
            f"export writes JSONL or CSV, and {Path(output).name} is named as neither: say which by --format "
            "(for Parquet: client.usage.list().to_pandas() or .to_polars() in Python)",
            parameter="format",
        )
    return known[suffix]


def jsonl_lines(records: Iterable[UsageRecord]) -> Iterator[bytes]:
    """A line of JSON for each record, as the REST interface has it."""
    for record in records:
        yield USAGE_RECORD.encode_json(record) + b"\n"


def csv_lines(records: Iterable[UsageRecord]) -> Iterator[bytes]:
    """A heading, and a line for each record: every field, maps and lists as JSON."""
    names = [name for name in UsageRecord.__struct_fields__ if name != "unknown_"]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for record in records:
        yield _taken(buffer)
        writer.writerow([_cell(getattr(record, name)) for name in names])
    yield _taken(buffer)


def _taken(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text.encode()


def _cell(value: object) -> str:
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, list | dict | msgspec.Struct):
        return msgspec.json.encode(value).decode()
    if isinstance(value, Decimal):
        return f"{value:f}"
    text = str(value)
    return "" if isinstance(value, Enum) and text == "unspecified" else text


def _write(file: BinaryIO, lines: Iterator[bytes]) -> int:
    count = 0
    for line in lines:
        file.write(line)
        count += 1
    return count


def _replace(target: Path, lines: Iterator[bytes]) -> int:
    """Write a file beside the target, and put it in its place when it is whole.

    Where the target is no file, such as a pipe or a device, it is written to.
    """
    if target.exists() and not target.is_file():
        with target.open("wb") as device:
            return _write(device, lines)
    # A link stays, and leads to the new file.
    target = Path(os.path.realpath(target))
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no folder {target.parent}", parameter="output")
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            count = _write(file, lines)
        Path(name).chmod(_mode_of(target))
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return count


def _mode_of(target: Path) -> int:
    """The mode that a file has once it is opened for writing, where mkstemp makes it private."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
