"""For scripts and terminals: periods by words, plots, records and prices, completion, exit statuses."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops import CostOpsClient, cli
from llm_cost_ops.cli.output import Bar, Output
from llm_cost_ops.cli.periods import PERIOD_WORDS, period_end, period_start
from tests.waiting import MAX_WAIT

NOW = datetime(2026, 3, 1, 0, 30, tzinfo=UTC)
ZONES = st.sampled_from(
    ["", "UTC", "Europe/Berlin", "America/Los_Angeles", "Pacific/Kiritimati", "Asia/Kathmandu"]
)
MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "costs.db"
    with CostOpsClient(base_url=f"sqlite:///{path}") as client:
        for day, model, tokens in ((1, "gpt-4o", 4000), (4, "gpt-4o", 1000), (4, "unheard-of", 5)):
            client.usage.submit(
                organization_id="acme",
                provider="openai",
                model_id=model,
                input_tokens=tokens,
                output_tokens=0,
                timestamp=f"2026-10-0{day}T12:00:00Z",
            )
    return path


def run(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


# Periods.


@pytest.mark.parametrize(
    ("word", "zone", "start", "end"),
    [
        ("today", "", "2026-03-01", "2026-03-01"),
        ("today", "America/Los_Angeles", "2026-02-28", "2026-02-28"),
        ("yesterday", "", "2026-02-28", "2026-02-28"),
        ("this-week", "", "2026-02-23", "2026-03-01"),
        ("last-week", "", "2026-02-16", "2026-02-22"),
        ("this-month", "", "2026-03-01", "2026-03-31"),
        ("this-month", "America/Los_Angeles", "2026-02-01", "2026-02-28"),
        ("last-month", "", "2026-02-01", "2026-02-28"),
        ("this-year", "", "2026-01-01", "2026-12-31"),
        ("7d", "", "2026-02-22", "2026-02-22"),
        ("2w", "", "2026-02-15", "2026-02-15"),
        ("12h", "Europe/Berlin", "2026-02-28T12:30:00Z", "2026-02-28T12:30:00Z"),
        ("2026-01-05", "", "2026-01-05", "2026-01-05"),
        ("2024-02", "America/Los_Angeles", "2024-02-01", "2024-02-29"),
        ("2025-12", "", "2025-12-01", "2025-12-31"),
        ("2026-13", "", "2026-13", "2026-13"),
        ("tomorrow", "", "tomorrow", "tomorrow"),
    ],
)
def test_a_word_is_a_period(word: str, zone: str, start: str, end: str) -> None:
    assert (period_start(word, zone, NOW), period_end(word, zone, NOW)) == (start, end)


@given(st.sampled_from(PERIOD_WORDS), ZONES, MOMENTS)
def test_a_word_that_names_now_holds_it_and_one_that_does_not_ends_before(
    word: str, zone: str, now: datetime
) -> None:
    first = date.fromisoformat(period_start(word, zone, now))
    last = date.fromisoformat(period_end(word, zone, now))
    today = now.astimezone(ZoneInfo(zone or "UTC")).date()
    assert first <= last
    if word.startswith(("this-", "today")):
        assert first <= today <= last
    else:
        assert last < today
        following = period_start(
            "today" if word == "yesterday" else word.replace("last-", "this-"), zone, now
        )
        assert last + timedelta(days=1) == date.fromisoformat(following)
    lengths = {"week": {7}, "month": {28, 29, 30, 31}, "year": {365, 366}}.get(word.partition("-")[2], {1})
    assert (last - first).days + 1 in lengths


def test_how_long_ago_is_bounded() -> None:
    assert period_start("9999w", "", NOW) == "1834-07-13"
    assert period_start("10000w", "", NOW) == "10000w"


def test_words_are_taken_by_every_command_that_filters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "now.db"
    with CostOpsClient(base_url=f"sqlite:///{path}") as client:
        for days in (0, 45):
            at = datetime.now(UTC) - timedelta(days=days)
            client.usage.submit(
                organization_id="a", provider="openai", model_id="gpt-4o", input_tokens=1, timestamp=at
            )
    for start, count in (("7d", 1), ("24h", 1), ("90d", 2)):
        assert run("costs", "--db", path, "--json", "--start", start) == 0
        assert json.loads(capsys.readouterr().out)["total_requests"] == count
        assert run("export", "--db", path, "--start", start) == 0
        assert len(capsys.readouterr().out.splitlines()) == count
        assert run("usage", "list", "--db", path, "--csv", "--start", start) == 0
        assert len(capsys.readouterr().out.splitlines()) == count + 1
    assert run("costs", "--db", path, "--start", "7d", "--time-zone", "Mars/Olympus") == 2
    assert "--time-zone must be" in capsys.readouterr().err


# Plots.


def test_bars_begin_at_the_first_of_two_hours_of_one_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hours.db"
    with CostOpsClient(base_url=f"sqlite:///{path}") as client:
        for hour in (0, 1, 4):
            client.usage.submit(
                organization_id="acme",
                provider="openai",
                model_id="gpt-4o",
                input_tokens=1000,
                timestamp=datetime(2026, 10, 25, hour, tzinfo=UTC),
            )
    assert run("costs", "--db", path, "--by", "hour", "--plot", "--time-zone", "Europe/Berlin") == 0
    hours = [line[11:25] for line in capsys.readouterr().out.splitlines()[:5]]
    assert hours == [f"0{hour}:00:00+0{zone}:00" for hour, zone in ((2, 2), (2, 1), (3, 1), (4, 1), (5, 1))]


def test_bars_are_of_every_day_and_as_long_as_the_costs(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("costs", "--db", database, "--by", "day", "--plot") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("  ") for line in lines[:4]]
    assert [row[0] for row in rows] == ["2026-10-01", "2026-10-02", "2026-10-03", "2026-10-04"]
    lengths = [line.count("█") for line in lines[:4]]
    assert lengths[0] == 4 * lengths[3] > 0, "0.01 against 0.0025"
    assert lengths[1] == lengths[2] == 0
    assert "1 request without a price" in lines[3]
    said = "\n".join(lines)
    assert "1 request has no price: the total is a lower bound. It lacks a price" in said
    assert "or counts (llm-cost-ops usage correct)" in said, "a price does not help a call of unknown usage"
    assert max(map(len, lines[:4])) <= 80
    assert run("costs", "--db", database, "--by", "model", "--plot") == 0
    assert next(line for line in capsys.readouterr().out.splitlines() if "unheard-of" in line).split()[
        1:3
    ] == [
        "no",
        "price",
    ]


def test_a_plot_is_refused_beside_another_form_and_empty_without_usage(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("costs", "--db", database, "--plot", "--csv")
    assert ended.value.code == 2
    capsys.readouterr()
    assert run("costs", "--db", database, "--plot", "--provider", "nobody") == 0
    assert capsys.readouterr().out.startswith("0.00 USD for 0 requests")


class _Stream(io.TextIOWrapper):
    def __init__(self, encoding: str, terminal: bool) -> None:
        self.bytes = io.BytesIO()
        self.terminal = terminal
        super().__init__(self.bytes, encoding=encoding, errors="replace", write_through=True)

    def isatty(self) -> bool:
        return self.terminal


@given(
    bars=st.lists(
        st.builds(
            Bar,
            label=st.text("abc-/é", max_size=120),
            value=st.decimals(-5, 10**9, places=3),
            text=st.sampled_from(["0.00", "1,234.567", "no price"]),
            note=st.sampled_from(["", "3 requests without a price"]),
        ),
        max_size=8,
    ),
    encoding=st.sampled_from(["utf-8", "ascii", "latin-1", "cp437"]),
    columns=st.integers(20, 300),
    terminal=st.booleans(),
)
def test_a_plot_fits_and_shows_what_the_terminal_can(
    bars: list[Bar], encoding: str, columns: int, terminal: bool
) -> None:
    stream = _Stream(encoding, terminal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr("llm_cost_ops.cli.output.find_spec", lambda name: None)
        Output(stream=stream).bars(bars)
    shown = stream.bytes.getvalue().decode(encoding)
    lines = shown.splitlines()
    assert len(lines) == len(bars) + 1
    sign = "█" if encoding == "utf-8" else "#"
    drawn = [sum(line.count(each) for each in "#█▏▎▍▌▋▊▉") for line in lines]
    if encoding != "utf-8":
        assert not set(shown) & set("█▏▎▍▌▋▊▉"), sign
    for bar, length in zip(bars, drawn, strict=False):
        assert (length > 0) == (bar.value > 0), "what is more than nothing is seen"
    by_value = sorted(zip((bar.value for bar in bars), drawn, strict=False))
    assert [length for _, length in by_value] == sorted(drawn[: len(bars)]), "a larger one is never shorter"
    widest = max((len(bar.text) + len(bar.note) for bar in bars), default=0)
    if terminal and columns >= widest + 40:
        assert max(map(len, lines), default=0) < columns
    if not terminal and encoding == "utf-8":
        assert all(bar.label in line for bar, line in zip(bars, lines, strict=False)), (
            "nothing is cut in a file"
        )


def test_groups_are_given_by_one_option_or_several(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = set()
    for given_as in (("--by", "day", "--by", "model"), ("--group-by", "day,model"), ("--by", "day,model")):
        assert run("costs", "--db", database, "--csv", *given_as) == 0
        answers.add(capsys.readouterr().out)
    assert len(answers) == 1
    assert answers.pop().startswith("day,model,")


# Records.


def test_records_are_listed_the_newest_first(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("usage", "list", "--db", database, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["model"], row["cost"], row["status"]) for row in rows[-1:]] == [("gpt-4o", "0.01", "priced")]
    assert next(row for row in rows if row["model"] == "unheard-of")["cost"] == "", "not 0"
    assert [row["time"] for row in rows] == sorted((row["time"] for row in rows), reverse=True)
    assert run("usage", "list", "--db", database, "--limit", 2, "--json") == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == [row["id"] for row in rows[:2]]
    assert run("usage", "list", "--db", database, "--limit", 2) == 0
    assert "There are more" in capsys.readouterr().out
    assert run("usage", "list", "--db", database, "--limit", 3) == 0
    assert "There are more" not in capsys.readouterr().out
    assert run("usage", "list", "--db", database, "--provider", "nobody") == 0
    assert "Nothing is recorded" in capsys.readouterr().out


def test_a_record_is_shown_with_its_receipt(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        records = {
            record.model_id: record for record in client.usage.get_history(sort="timestamp", order="desc")
        }
        record = records["gpt-4o"]
        total = client.costs.get_record(record.id, organization_id="acme").total_cost
    place = ("--db", database, "--organization", "acme")
    assert run("usage", "show", record.id, *place) == 0
    shown = capsys.readouterr().out
    for text in (
        record.id,
        "gpt-4o",
        "INPUT",
        str(total),
        "priced, by the card openai/gpt-4o",
        "it is the same",
    ):
        assert text in shown
    assert re.search(r"^ingested_at +\S+Z$", shown, re.MULTILINE), "times are all in one form"
    assert run("usage", "show", record.id, *place, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert Decimal(answer["cost"]["total_cost"]) == total
    assert answer["usage"]["id"] == record.id
    assert answer["matches"] is True
    assert run("usage", "show", record.id, *place, "--csv") == 0
    assert capsys.readouterr().out.startswith("meter,quantity,price,cost\nINPUT,")
    assert run("usage", "show", records["unheard-of"].id, *place) == 0
    assert "No price is known" in capsys.readouterr().out
    assert run("usage", "void", record.id, *place, "--reason", "a test") == 0
    capsys.readouterr()
    assert run("usage", "show", record.id, *place) == 0
    assert "2 revisions" in capsys.readouterr().out
    assert run("usage", "show", "no-such-id", *place) == 2
    assert "no usage record" in capsys.readouterr().err


# Prices.


def test_a_price_of_ones_own_prices_what_comes_and_what_is_priced_again(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--input",
        "2",
        "--output",
        "8",
        "--cached",
        "0.2",
        "--cache-write",
        "2.5",
        "--meter",
        "PAGES=10/1000",
    )
    dates = ("--from", "2026-01-01", "--organization", "acme")
    assert run("prices", "add", "openai", "unheard-of", *options, *dates, "--db", database) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("openai/unheard-of, card ")
    assert "PAGES" in shown
    assert run("prices", "list", "--db", database, "--csv") == 0
    [card] = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (card["model"], card["organization"], card["input"]) == ("openai/unheard-of", "acme", "2")
    assert card["holds"] == "from 2026-01-01"
    assert run("prices", "list", "another", "--db", database) == 1
    assert "prices add" in capsys.readouterr().out
    call = ("openai", "unheard-of", "--organization", "acme", "--db", database, "--json")
    used = ("--input", 1_000_000, "--cached", 500_000, "--output", 100_000, "--meter", "PAGES=5")
    assert run("estimate", *call, *used) == 0
    cost = json.loads(capsys.readouterr().out)
    assert Decimal(cost["total_cost"]) == Decimal(1) + Decimal("0.1") + Decimal("0.8") + Decimal("0.05")
    assert run("reprice", "--db", database, "--status", "unpriced") == 0
    assert "1 of 1 records got another cost" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "at least one price"),
        (("--input", "two"), "INPUT must be a number"),
        (("--meter", "PAGES=1/many"), "PAGES must be a number"),
        (("--input", "-1"), "price"),
        (("--input", "NaN"), "price"),
        (("--meter", "PAGES"), "NAME=PRICE"),
    ],
)
def test_a_price_that_is_none_is_refused(
    database: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tuple(f"{name}={value}" for name, value in zip(options[::2], options[1::2], strict=True))
    assert run("prices", "add", "house", "m", "--db", database, *options) == 2
    assert said in capsys.readouterr().err
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        assert [card for card in client.pricing.list(provider="house") if card.provider == "house"] == []


# Exit statuses.


def test_what_is_unknown_is_not_0(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("estimate", "openai", "gpt-4o", "--input", 5) == 0
    for form in ((), ("--json",), ("--csv",)):
        assert run("estimate", "nobody", "no-model", "--input", 5, *form) == 1
        assert run("estimate", "openai", "gpt-4o", "--input", 5, "--meter", "UNHEARD_OF=1", *form) == 1, (
            "a part"
        )
        assert run("prices", "list", "no-such-model-at-all", *form) == 1
    assert run("prices", "show", "nobody/no-model") == 2
    capsys.readouterr()


@pytest.mark.parametrize("arguments", [["no-such-command"], ["costs", "--no-such-option"], []])
def test_a_wrong_call_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: llm-cost-ops" in capsys.readouterr().err


def test_an_interrupted_command_is_130(tmp_path: Path) -> None:
    # A shell that starts jobs in the background has them ignore SIGINT.
    begin = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    begin += "from llm_cost_ops.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", begin, "import", "-", "--db", str(tmp_path / "costs.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        # An interrupt may come while Python starts. That more than a pipe holds is read shows that it runs.
        process.stdin.write("\n" * 1_000_000)
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(MAX_WAIT) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "llm-cost-ops: interrupted\n"


# Completion.

COMPLETED = [
    ("", {"costs", "usage", "prices", "completion"}),
    ("us", {"usage"}),
    ("usage ", {"list", "show", "void", "correct", "revisions"}),
    ("usage list --prov", {"--provider"}),
    ("prices add --cache", {"--cached", "--cache-write"}),
    ("costs --pl", {"--plot"}),
    ("costs --db x.db --by usage --pl", {"--plot"}),
    ("keys create --role ", {"reader", "writer", "admin"}),
]


def _commands() -> Iterator[str]:
    for action in cli._parser()._actions:
        if hasattr(action, "choices") and isinstance(action.choices, dict):
            yield from action.choices


@pytest.mark.parametrize("command", list(_commands()))
def test_every_command_names_the_function_that_runs_it(command: str) -> None:
    """It is imported when it is run, where neither a type checker nor another test sees a wrong name."""
    parsers = next(action.choices for action in cli._parser()._actions if hasattr(action.choices, "get"))
    module, _, name = parsers[command].get_default("run").partition(":")
    assert name in import_module(f"llm_cost_ops.cli.{module}").__all__


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_good_to_its_shell_and_has_every_command(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    assert [name for name in _commands() if name not in script] == []
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(script)
    subprocess.run([shell, "-n", str(path)], check=True, timeout=2 * MAX_WAIT)


@pytest.mark.parametrize(("line", "expected"), COMPLETED)
@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_a_shell_completes(
    shell: str, line: str, expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    assert run("completion", shell) == 0
    script.write_text(capsys.readouterr().out)
    words = ["llm-cost-ops", *line.split(" ")]
    if shell == "bash":
        quoted = " ".join(f"'{word}'" for word in words)
        code = (
            f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
            '_llm_cost_ops; printf "%s\\n" "${COMPREPLY[@]}"'
        )
    elif shell == "fish":
        code = f"source {script}; complete -C 'llm-cost-ops {line}' | cut -f1"
    else:
        # What the function hands to zsh: its own completion wants a terminal.
        quoted = " ".join(f"'{word}'" for word in words)
        code = (
            f"compdef() {{ :; }}; compadd() {{ shift; print -l -- $@; }}; _files() {{ :; }}; "
            f"_describe() {{ print -l -- ${{(P)2%%:*}}; }}; PREFIX='{words[-1]}'; source {script}; "
            f"words=({quoted}); CURRENT={len(words)}; _llm_cost_ops"
        )
    done = subprocess.run(
        [shell, "-c", code], capture_output=True, text=True, timeout=2 * MAX_WAIT, check=True
    )
    found = {name for name in done.stdout.split("\n") if name.startswith(words[-1]) and name}
    assert expected <= found, done
    if words[-1]:
        assert all(name.startswith(words[-1]) for name in found)
