"""Records example responses of providers with the embedded engine, and shows what they cost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from shlex import quote
from shutil import which

from llm_cost_ops.cli.importing import Import
from llm_cost_ops.cli.output import Output, money
from llm_cost_ops.cli.reports import cost_table, print_total
from llm_cost_ops.cli.target import url_of
from llm_cost_ops.client.clients import CostOpsClient
from llm_cost_ops.config import without_password
from llm_cost_ops.imports import UsageFile

__all__ = ["quickstart"]

EXAMPLES = Path(__file__).parents[2] / "examples" / "data" / "responses.jsonl"


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
            file = UsageFile(stream, path.name)
            job.run(file, path.stat().st_size)
        job.report(output, file)
        by_model = client.costs.get(group_by=["provider", "model"])
        by_day = client.costs.get(group_by="day")
        output.line()
        output.table(cost_table("By provider and model", by_model))
        output.table(cost_table("By day", by_day))
        print_total(output, by_model)
        today = client.usage.get_history(page_size=1).data
        if today:
            record = today[0]
            cost = (
                "no price"
                if record.estimated_cost is None
                else f"{money(record.estimated_cost)} {record.currency}"
            )
            output.line(
                f"The last call: {record.provider} {record.model_id}, {record.input_tokens:,} tokens in "
                f"({record.cached_tokens:,} cached), {record.output_tokens:,} out: {cost}."
            )
    question = f"{_command()} costs --db {quote(without_password(options.db))} --group-by project,day"
    output.line("Ask more: ", (question, "bold"))
    return 1 if job.rejected else 0


def _command() -> str:
    """What to type for this program: its name, or its path where a shell does not find it by that."""
    run = Path(sys.argv[0])
    return "llm-cost-ops" if run.name != "llm-cost-ops" or which(run.name) else _shown(run.absolute())


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
