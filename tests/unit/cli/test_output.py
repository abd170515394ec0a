"""What commands print where: plain text that nothing is cut from, tables on terminals, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llm_cost_ops import CostOpsClient, cli
from llm_cost_ops.cli.output import Cell, Column, Output, Table, _rich_table, money

LONG = "m-" + "x" * 250
WITHOUT_RICH = (
    "import sys; sys.modules['rich'] = None; from llm_cost_ops.cli import main; sys.exit(main(sys.argv[1:]))"
)
WITH_RICH = "import sys; from llm_cost_ops.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "costs.db"
    with CostOpsClient(base_url=f"sqlite:///{path}") as client:
        for model, tokens in (("gpt-4o", 123_456), (LONG, 1)):
            client.usage.submit(
                organization_id="acmé",
                provider="openai",
                model_id=model,
                input_tokens=tokens,
                output_tokens=0,
            )
    return path


def run(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def on_a_terminal(code: str, *arguments: Any, environment: dict[str, str] | None = None) -> str:
    """What a command prints on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "COLUMNS": "80", "TERM": "xterm", **(environment or {})}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        parts = []
        try:
            while data := os.read(ours, 65536):
                parts.append(data)
        except OSError:
            pass
    os.close(ours)
    assert process.returncode == 0, parts
    return b"".join(parts).decode(errors="replace")


def test_nothing_is_cut_where_no_terminal_is(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("costs", "--db", database) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "What it cost",
        f"provider  {'model'.ljust(len(LONG))}  requests   tokens  cost, USD  unpriced",
        f"--------  {'-' * len(LONG)}  --------  -------  ---------  --------",
    ]
    assert any(LONG in line for line in lines)
    total = next(line for line in lines if line.startswith("total"))
    assert total.split() == ["total", "2", "123,457", "0.30864", "1"]


def test_commands_need_no_rich(database: Path) -> None:
    for arguments in (
        ("costs", "--db", database),
        ("prices", "list", "gpt-4o-mini"),
        ("prices", "show", "openai/gpt-4o"),
        ("estimate", "openai", "gpt-4o", "--input", 1000),
        ("keys", "list", "--db", database),
        ("reprice", "--db", database, "--dry-run"),
        ("quickstart", "--db", database.with_name("quickstart.db")),
    ):
        command = [sys.executable, "-c", WITHOUT_RICH, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip()
        assert "\x1b" not in done.stdout


def test_a_terminal_has_colours_where_rich_is(database: Path) -> None:
    assert "\x1b[" in on_a_terminal(WITH_RICH, "costs", "--db", database)
    plain = on_a_terminal(WITHOUT_RICH, "costs", "--db", database)
    assert "\x1b[" not in plain
    assert LONG in plain


def test_a_terminal_that_is_not_utf_8_shows_what_it_can(database: Path) -> None:
    for code in (WITH_RICH, WITHOUT_RICH):
        shown = on_a_terminal(
            code,
            "costs",
            "--db",
            database,
            "--group-by",
            "organization",
            environment={"PYTHONIOENCODING": "ascii"},
        )
        assert "acm?" in shown


@pytest.mark.parametrize(
    ("arguments", "row"),
    [
        (
            ["costs", "--db", "DB", "--model", "gpt-4o"],
            {"provider": "openai", "model": "gpt-4o", "requests": 1, "tokens": 123456, "cost": "0.30864"},
        ),
        (
            ["prices", "list", "gpt-4o-mini", "--provider", "openai"],
            {
                "model": "openai/gpt-4o-mini",
                "input": "0.15",
                "cached": "0.075",
                "output": "0.6",
                "currency": "USD",
            },
        ),
        (["prices", "show", "openai/gpt-4o-mini"], {"meter": "INPUT", "price": "0.15", "per": 1_000_000}),
        (["estimate", "openai", "gpt-4o", "--input", "1000"], {"meter": "INPUT", "cost": "0.0025"}),
        (["keys", "list", "--db", "DB"], {"role": "reader", "organizations": "acmé", "name": 'a "key", é'}),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else "",
)
def test_every_listing_is_csv_and_json(
    arguments: list[str], row: dict[str, Any], database: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert (
        run(
            "keys",
            "create",
            "--db",
            database,
            "--organization",
            "acmé",
            "--role",
            "reader",
            "--name",
            'a "key", é',
        )
        == 0
    )
    capfdbinary.readouterr()
    asked = [str(database) if argument == "DB" else argument for argument in arguments]
    assert run(*asked, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capfdbinary.readouterr().out.decode())))
    assert any(
        {name: str(value) for name, value in row.items()}.items() <= found.items() for found in rows
    ), rows
    assert run(*asked, "--json") == 0
    answer = json.loads(capfdbinary.readouterr().out)
    if isinstance(answer, list):
        assert any(row.items() <= found.items() for found in answer), answer
        assert [list(found) for found in answer] == [list(found) for found in rows]


def test_an_empty_listing_is_still_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "costs.db"
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        client.usage.submit(organization_id="a", provider="openai", model_id="gpt-4o", input_tokens=1)
    assert run("keys", "list", "--db", database, "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run("costs", "--db", database, "--organization", "nobody", "--csv") == 0
    assert capsys.readouterr().out == "group,requests,tokens,cost,currency\n"


AMOUNTS = st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**6), max_value=10**6)


@given(st.lists(st.tuples(st.text(st.characters(codec="ascii", categories=["L", "N"])), AMOUNTS), min_size=1))
def test_points_stand_under_each_other(rows: list[tuple[str, Decimal]]) -> None:
    cells: list[list[Cell]] = [[text, amount.normalize()] for text, amount in rows]
    table = Table(columns=[Column("a"), Column("b", right=True)], rows=cells)
    stream = io.StringIO()
    Output(stream=stream).table(table)
    _, line, *lines = stream.getvalue().split("\n")
    assert set(line) == {"-", " "}
    shown = lines[: len(rows)]
    assert [each.split()[-1] for each in shown] == [money(amount.normalize()) for _, amount in rows]
    assert len({each.index(".") for each in shown}) == 1


def test_a_terminal_that_is_too_narrow_cuts_neither_names_nor_costs(database: Path) -> None:
    shown = on_a_terminal(WITH_RICH, "costs", "--db", database, environment={"COLUMNS": "40"})
    assert "…" not in shown
    assert "no room for requests, tokens: --json shows all." in shown
    assert "0.30864" in shown


def test_a_plot_on_a_narrow_terminal_has_its_labels_before_its_notes(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with CostOpsClient(base_url=f"sqlite:///{path}") as client:
        for model in ("gpt-4o", "unheard-of"):
            client.usage.submit(
                organization_id="acme", provider="openai", model_id=model, output_tokens=1234,
                timestamp="2026-10-27",
            )  # fmt: skip
    asked = ("costs", "--by", "day", "--plot", "--db", path)
    wide, narrow = (
        on_a_terminal(WITH_RICH, *asked, environment={"COLUMNS": columns}) for columns in ("80", "50")
    )
    assert "1 request without a price" in wide
    assert "1 request without a price" not in narrow
    assert "2026-10-27  0.01234" in wide
    assert "2026-10-27  0.01234" in narrow


def test_a_terminal_that_is_too_narrow_shows_what_a_list_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with CostOpsClient(base_url=f"sqlite:///{path}") as client:
        sent = client.usage.submit(
            organization_id="acme", provider="openai", model_id="gpt-4o", output_tokens=1000
        )
    shown = on_a_terminal(WITH_RICH, "usage", "list", "--db", path)
    assert sent.usage_id in shown
    assert "gpt-4o" in shown
    assert "0.01" in shown
    assert "no room for organization, provider, input, output" in shown
    wide = on_a_terminal(WITH_RICH, "usage", "list", "--db", path, environment={"COLUMNS": "200"})
    assert "no room" not in wide
    assert "priced" in wide


def test_no_name_is_cut_for_a_bar() -> None:
    for length in range(20, 45):
        table = Table(
            columns=[Column("name"), Column("cost", right=True)],
            rows=[["x" * length, Decimal("0.25")]],
            shares=[1.0],
        )
        shown = io.StringIO()
        Console(width=60, file=shown).print(_rich_table(table, 60))
        assert "x" * length in shown.getvalue()


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_as_good_as_empty(database: Path, closed: str) -> None:
    code = 'exec "$0" -m llm_cost_ops.cli costs --db "$1" ' + closed
    done = subprocess.run(["sh", "-c", code, sys.executable, str(database)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
