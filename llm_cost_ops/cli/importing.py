"""Records the usage in a file: streamed, itemised, and safe to run twice."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from llm_cost_ops._gen.codecs import USAGE_RECORD
from llm_cost_ops.cli.import_lines import FIELDS, Line, assignments, put, read_csv, read_jsonl, reason_of
from llm_cost_ops.cli.reports import money
from llm_cost_ops.cli.target import open_client
from llm_cost_ops.client.clients import CostOpsClient
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.normalizers import PayloadError
from llm_cost_ops.normalizers.lines import record_from_line
from llm_cost_ops.pricing.money import from_units, to_units
from llm_cost_ops.rules.usage import total_tokens
from llm_cost_ops.types import SubmitResult, SubmitStatus, UsageReceipt, UsageRecord
from llm_cost_ops.wire.errors import DecodeError

__all__ = ["Import", "import_file"]

SHOWN_REJECTIONS = 100
DEFAULT_ORGANIZATION = "default"


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
            self._pending.append((line.number, reason_of(error)))
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
        if "response" in fields or FIELDS.isdisjoint(fields):
            return _overlaid(record_from_line(fields), self._given)
        for path, text in self._given.items():
            put(fields, path, text)
        return record_from_line(fields)

    def _send(self) -> None:
        """Record what is pending, and tell of the lines that were not, in their order."""
        pending, self._pending = self._pending, []
        records = [record for _, record in pending if isinstance(record, UsageRecord)]
        results = iter(self._client.usage.submit_batch(records).results if records else ())
        for number, record in pending:
            if isinstance(record, str):
                self._reject(number, record)
                continue
            result = next(results)
            if result.usage is None:
                self._reject(number, _reason(result), conflict=result.status == SubmitStatus.CONFLICT)
            else:
                self._count(record, result.usage)

    def _count(self, record: UsageRecord, receipt: UsageReceipt) -> None:
        if receipt.duplicate:
            self.duplicates += 1
        else:
            self.created += 1
        self.tokens += total_tokens(record)
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
        put(fields, path, text)
    overlay = USAGE_RECORD.decode_json(msgspec.json.encode(fields))
    for name in fields:
        value = getattr(overlay, name)
        setattr(record, name, {**getattr(record, name), **value} if isinstance(value, dict) else value)
    return record


def import_file(options: argparse.Namespace) -> int:
    """The `import` command."""
    if options.batch_size < 1:
        raise ConfigurationError("--batch-size must be 1 or more", parameter="batch_size")
    given = assignments("set", options.set)
    mapping = assignments("map", options.map)
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
