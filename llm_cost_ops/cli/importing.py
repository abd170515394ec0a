"""Records the usage in a file: streamed, itemised, and safe to run twice; `quickstart` with examples."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from shlex import quote
from shutil import which

from llm_cost_ops.cli.output import Output, money
from llm_cost_ops.cli.tables import cost_table, print_total
from llm_cost_ops.cli.target import open_client, url_of
from llm_cost_ops.client.clients import CostOpsClient
from llm_cost_ops.config import EMBEDDED, without_password
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.imports import Item, UsageFile, assignments, delimiter_of
from llm_cost_ops.pricing.money import from_units, to_units
from llm_cost_ops.rules.requests import total_tokens
from llm_cost_ops.types import SubmitResult, SubmitStatus, UsageReceipt, UsageRecord

__all__ = ["Import", "import_file", "quickstart"]

SHOWN_REJECTIONS = 100

# A server takes bodies of 16 MiB, which 1,000 records have at most. A file better takes more at once: old
# records lie all over its index by time, and each transaction writes every page that it touches.
_TO_A_SERVER = 1000
_INTO_A_DATABASE = 5000
EXAMPLES = Path(__file__).parents[2] / "examples" / "data" / "responses.jsonl"


class Import:
    """Sends the records of a file in batches, and keeps count."""

    def __init__(self, client: CostOpsClient, *, batch_size: int) -> None:
        self._client = client
        self._size = batch_size
        self._pending: list[Item] = []
        self.created = self.duplicates = self.conflicts = self.invalid = 0
        self.tokens = 0
        self.unpriced = 0
        self.units: dict[str, int] = {}
        self.errors = Output(stream=sys.stderr)

    @property
    def rejected(self) -> int:
        """Lines that were not recorded."""
        return self.conflicts + self.invalid

    def run(self, file: UsageFile, size: int | None) -> None:
        """Send every record, with a progress bar on a terminal; `size` is that of the file in bytes."""
        with self.errors.progress("recording", size) as advance:
            for item in file:
                self._pending.append(item)
                if len(self._pending) >= self._size:
                    self._send()
                    advance(file.consumed, f"{self.created + self.duplicates:,} records")
            self._send()

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
        """Add a record to the sums, which are those of what is new."""
        if receipt.duplicate:
            self.duplicates += 1
            return
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
            self.errors.line(f"line {number}: {why}")
        elif self.rejected == SHOWN_REJECTIONS + 1:
            self.errors.line("further rejected lines are only counted")

    def report(self, output: Output, file: UsageFile) -> None:
        """What the file was taken for, what was done, and what it cost."""
        if file.notes:
            output.line(f"Read as {', '.join(file.notes)}")
        passed = f", {file.passed_over:,} passed over that are no calls" if file.passed_over else ""
        output.line(
            (f"{self.created:,}", "bold"),
            f" recorded, {self.duplicates:,} were there before, "
            f"{self.conflicts:,} in conflict, {self.invalid:,} invalid{passed}",
        )
        costs = ", ".join(f"{money(from_units(units))} {code}" for code, units in sorted(self.units.items()))
        unpriced = f", {self.unpriced:,} unpriced" if self.unpriced else ""
        output.line(f"{self.tokens:,} tokens, {costs or 'no cost'}{unpriced}")
        if file.hint():
            self.errors.line(file.hint())


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


def import_file(options: argparse.Namespace) -> int:
    """The `import` command."""
    if options.batch_size is not None and options.batch_size < 1:
        raise ConfigurationError("--batch-size must be 1 or more", parameter="batch_size")
    given = assignments("set", options.set)
    mapping = assignments("map", options.map)
    delimiter = delimiter_of(options.delimiter) if options.delimiter else ""
    shape = "csv" if options.format == "csv" else "json" if options.format else ""
    from_stdin = options.file == "-"
    path = Path(options.file)
    with open_client(options, create=True) as client:
        embedded = client.config.base_url.partition(":")[0] in EMBEDDED
        default = _INTO_A_DATABASE if embedded else _TO_A_SERVER
        job = Import(client, batch_size=options.batch_size or default)
        with nullcontext(sys.stdin.buffer) if from_stdin else path.open("rb") as stream:
            file = UsageFile(
                stream,
                "" if from_stdin else path.name,
                shape=shape,
                delimiter=delimiter,
                mapping=mapping,
                given=given,
                organization=client.config.organization_id,
            )
            job.run(file, None if from_stdin else path.stat().st_size)
        job.report(Output(), file)
    return 1 if job.rejected else 0


def quickstart(options: argparse.Namespace) -> int:
    """The `quickstart` command."""
    path = Path(options.file) if options.file else EXAMPLES
    if not path.exists():
        problem = f"there is no file {path}" if options.file else "the examples are in the repository only"
        print(
            f"llm-cost-ops: {problem}; name a JSONL file of provider responses: llm-cost-ops quickstart FILE",
            file=sys.stderr,
        )
        return 2
    output = Output()
    with CostOpsClient(base_url=url_of(options.db)) as client:
        output.line(
            "Recording the responses in ",
            (_shown(path), "bold"),
            " into ",
            (without_password(options.db), "bold"),
        )
        job = Import(client, batch_size=100)
        with path.open("rb") as stream:
            file = UsageFile(stream, path.name, organization=client.config.organization_id)
            job.run(file, path.stat().st_size)
        job.report(output, file)
        by_model = client.costs.get(group_by=["provider", "model"])
        by_day = client.costs.get(group_by="day")
        output.line()
        output.table(cost_table("By provider and model", by_model))
        output.table(cost_table("By day", by_day))
        print_total(output, by_model)
        for newest in client.usage.get_history(page_size=1).data:
            output.line(f"The last call: {_line_of(newest)}.")
    question = f"{_command()} costs --db {quote(without_password(options.db))} --by project,day"
    output.line("Ask more: ", (question, "bold"))
    return 1 if job.rejected else 0


def _line_of(record: UsageRecord) -> str:
    """A call in a line."""
    cost = "no price"
    if record.estimated_cost is not None:
        cost = f"{money(record.estimated_cost)} {record.currency}"
    given, returned = (
        "?" if count is None else f"{count:,}" for count in (record.input_tokens, record.output_tokens)
    )
    used = f"{given} tokens in ({record.cached_tokens:,} cached), {returned} out"
    return f"{record.provider} {record.model_id}, {used}: {cost}"


def _command() -> str:
    """What to type for this program: its name, or its path where a shell does not find it by that."""
    run = Path(sys.argv[0])
    return "llm-cost-ops" if run.name != "llm-cost-ops" or which(run.name) else _shown(run.absolute())


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
