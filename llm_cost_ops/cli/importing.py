"""Records the usage in a file: streamed, itemised, and safe to run twice."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from llm_cost_ops._gen.codecs import USAGE_RECORD
from llm_cost_ops.cli.reports import money
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.client import CostOpsClient
from llm_cost_ops.engine.money import from_units, to_units
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.normalizers import PayloadError
from llm_cost_ops.normalizers.lines import record_from_line
from llm_cost_ops.types import SubmitResult, SubmitStatus, UsageReceipt, UsageRecord
from llm_cost_ops.wire.errors import DecodeError
from llm_cost_ops.wire.json_keys import REPEATED, path_text, repeated_keys

__all__ = ["Import", "Line", "import_file", "read_csv", "read_jsonl"]

LONGEST_LINE = 16 * 1024 * 1024
SHOWN_REJECTIONS = 100
DEFAULT_ORGANIZATION = "default"


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
        if len(raw) > LONGEST_LINE:
            yield Line(number, raw, end, f"is longer than {LONGEST_LINE:,} bytes")
            continue
        try:
            fields = msgspec.json.decode(text)
            repeated = repeated_keys(text, msgspec.json.encode(fields))
        except (ValueError, RecursionError) as error:
            yield Line(number, text, end, f"is not JSON: {error}")
            continue
        if repeated:
            yield Line(number, text, end, f"{path_text(repeated[0])} {REPEATED}")
            continue
        yield Line(number, text, end, fields if isinstance(fields, dict) else "is not a JSON object")


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of bounded length: the rest of one that is too long is dropped."""
    while raw := stream.readline(LONGEST_LINE + 1):
        if len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
            while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
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
        fields: dict[str, Any] = {}
        for field, index in chosen.items():
            if row[index] != "":
                _put(fields, field, row[index])
        yield Line(rows.line_num, raw, end, fields)


# Numbers of a record: in CSV and in --set they come as text.
_INTEGERS = {
    field.name
    for field in msgspec.structs.fields(UsageRecord)
    if "tokens" in field.name or field.name in ("request_count", "latency_ms", "time_to_first_token_ms")
}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_FIELDS = {field.name for field in msgspec.structs.fields(UsageRecord)} - {"unknown_"}


def _put(fields: dict[str, Any], path: str, text: str) -> None:
    """Set a field by its path, such as labels.team."""
    name, _, inner = path.partition(".")
    number = name in _INTEGERS or name in ("meters", "modality")
    value: Any = int(text) if number and text.isascii() and text.removeprefix("-").isdigit() else text
    if inner:
        fields.setdefault(name, {})[inner] = value
    elif name == "tags":
        fields[name] = [tag for tag in text.split(",") if tag]
    elif name == "metadata":
        fields[name] = json.loads(text)
    elif name == "timestamp" and _DATE.fullmatch(text):
        fields[name] = f"{text}T00:00:00Z"
    else:
        fields[name] = value


def _assignments(option: str, texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        field, equals, value = text.partition("=")
        name = field.partition(".")[0]
        if not equals or name not in _FIELDS:
            raise ConfigurationError(
                f"--{option} {text}: must be FIELD=…, where FIELD is one of a usage record's, "
                f"such as input_tokens, model_id or labels.team",
                parameter=option,
            )
        found[field] = value
    return found


class Import:
    """Sends lines as usage records in batches, and keeps count."""

    def __init__(self, client: CostOpsClient, given: dict[str, str], *, batch_size: int) -> None:
        self._client = client
        self._given = given
        self._size = batch_size
        self._pending: list[tuple[int, UsageRecord | str]] = []
        self.created = self.duplicates = self.conflicts = self.invalid = 0
        self.tokens = 0
        self.unpriced = 0
        self.units: dict[str, int] = {}
        self.errors = Console(stderr=True, soft_wrap=True, highlight=False)

    @property
    def rejected(self) -> int:
        """Lines that were not recorded."""
        return self.conflicts + self.invalid

    def run(self, lines: Iterator[Line], size: int | None) -> None:
        """Send every line, with a progress bar on a terminal; `size` is that of the file in bytes."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]:,} records"),
            TimeRemainingColumn(),
            console=self.errors,
            transient=True,
        )
        with bar if self.errors.is_terminal else nullcontext():
            task = bar.add_task("recording", total=size, done=0)
            for line in lines:
                self._take(line)
                if len(self._pending) >= self._size:
                    self._send()
                    bar.update(task, completed=line.end, done=self.created + self.duplicates)
            self._send()

    def _take(self, line: Line) -> None:
        if isinstance(line.fields, str):
            self._pending.append((line.number, line.fields))
            return
        try:
            record = self._record(line.fields)
        except (DecodeError, PayloadError, ValueError) as error:
            self._pending.append((line.number, str(error)))
            return
        if not record.idempotency_key:
            digest = blake2b(b"%d:" % line.number + line.raw, digest_size=16).hexdigest()
            record.idempotency_key = f"import-{digest}"
        record.organization_id = record.organization_id or DEFAULT_ORGANIZATION
        if record.ingested_at is None:
            # An exported record is the one that was sent, and says where it came from.
            record.source = record.source or "file"
        self._pending.append((line.number, record))

    def _record(self, fields: dict[str, Any]) -> UsageRecord:
        if not self._given:
            return record_from_line(fields)
        if "response" in fields or _FIELDS.isdisjoint(fields):
            return _overlaid(record_from_line(fields), self._given)
        for path, text in self._given.items():
            _put(fields, path, text)
        return record_from_line(fields)

    def _send(self) -> None:
        """Record what is pending, and tell of the lines that were not, in their order."""
        pending, self._pending = self._pending, []
        records = [record for _, record in pending if isinstance(record, UsageRecord)]
        results = iter(self._results(records) if records else ())
        for number, record in pending:
            if isinstance(record, str):
                self._reject(number, record)
                continue
            result = next(results)
            if result.usage is None:
                self._reject(number, _reason(result), conflict=result.status == SubmitStatus.CONFLICT)
            else:
                self._count(record, result.usage)

    def _results(self, records: list[UsageRecord]) -> list[SubmitResult]:
        """What became of each record.

        An export tells the time of every record, also where it was the server that filled it in: such a
        record is the one that was sent without.
        """
        results = self._client.usage.submit_batch(records).results
        timed = [
            (at, record)
            for at, (record, result) in enumerate(zip(records, results, strict=True))
            if result.status == SubmitStatus.CONFLICT and record.timestamp is not None
        ]
        if timed:
            untimed = [msgspec.structs.replace(record, timestamp=None) for _, record in timed]
            for (at, record), result in zip(
                timed, self._client.usage.submit_batch(untimed).results, strict=True
            ):
                if result.usage is not None and result.usage.processed_at == record.timestamp:
                    results[at] = result
        return results

    def _count(self, record: UsageRecord, receipt: UsageReceipt) -> None:
        if receipt.duplicate:
            self.duplicates += 1
        else:
            self.created += 1
        self.tokens += record.input_tokens + record.output_tokens
        if receipt.estimated_cost is None:
            self.unpriced += 1
        else:
            units = self.units.get(receipt.currency, 0)
            self.units[receipt.currency] = units + to_units(receipt.estimated_cost)

    def _reject(self, number: int, why: str, *, conflict: bool = False) -> None:
        if conflict:
            self.conflicts += 1
        else:
            self.invalid += 1
        if self.rejected <= SHOWN_REJECTIONS:
            self.errors.print(f"line {number}: {why}", markup=False)
        elif self.rejected == SHOWN_REJECTIONS + 1:
            self.errors.print("further rejected lines are only counted")

    def report(self, console: Console) -> None:
        """What was done, and what it cost."""
        console.print(
            f"[bold]{self.created:,}[/] recorded, {self.duplicates:,} were there before, "
            f"{self.conflicts:,} in conflict, {self.invalid:,} invalid"
        )
        costs = ", ".join(f"{money(from_units(units))} {code}" for code, units in sorted(self.units.items()))
        unpriced = f", {self.unpriced:,} unpriced" if self.unpriced else ""
        console.print(f"{self.tokens:,} tokens, {costs or 'no cost'}{unpriced}")


def _reason(result: SubmitResult) -> str:
    """Why a record was not written, without its place in the batch, which means nothing to a reader."""
    if result.error is None:
        return "was rejected"
    if result.status == SubmitStatus.CONFLICT:
        return result.error.message
    rules = [
        f"{violation.field.partition('].')[2] or violation.field} {violation.description}"
        for violation in result.error.violations
    ]
    return "; ".join(rules) or result.error.message


def _overlaid(record: UsageRecord, given: dict[str, str]) -> UsageRecord:
    fields: dict[str, Any] = {}
    for path, text in given.items():
        _put(fields, path, text)
    overlay = USAGE_RECORD.decode_json(msgspec.json.encode(fields))
    for name in fields:
        value = getattr(overlay, name)
        setattr(record, name, {**getattr(record, name), **value} if isinstance(value, dict) else value)
    return record


def import_file(options: argparse.Namespace) -> int:
    """The `import` command."""
    if options.batch_size < 1:
        raise ConfigurationError("--batch-size must be 1 or more", parameter="batch_size")
    given = _assignments("set", options.set)
    mapping = _assignments("map", options.map)
    kind = options.format or ("csv" if options.file.lower().endswith(".csv") else "jsonl")
    if kind == "csv" and not mapping:
        raise ConfigurationError(
            "a CSV file needs --map, such as --map input_tokens=ContextTokens", parameter="map"
        )
    if kind == "jsonl" and mapping:
        raise ConfigurationError("--map goes with CSV files; use --set for JSONL", parameter="map")
    console = Console()
    with open_client(options, create=True) as client:
        job = Import(client, given, batch_size=options.batch_size)
        if options.file == "-":
            job.run(
                read_csv(sys.stdin.buffer, mapping) if kind == "csv" else read_jsonl(sys.stdin.buffer), None
            )
        else:
            path = Path(options.file)
            with path.open("rb") as stream:
                lines = read_csv(stream, mapping) if kind == "csv" else read_jsonl(stream)
                job.run(lines, path.stat().st_size)
        job.report(console)
    return 1 if job.rejected else 0
