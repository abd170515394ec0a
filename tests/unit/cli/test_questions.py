"""`costs`, `export`, `estimate`, `reprice` and `prices`: what they write, and what they refuse."""

from __future__ import annotations

import csv
import json
import os
import stat
import subprocess
import sys
import tracemalloc
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient, UsageRecord, cli
from llm_cost_ops.catalog import load, use_catalog
from llm_cost_ops.cli.export import csv_lines, jsonl_lines
from llm_cost_ops.pricing.money import plain
from tests.conformance.clients import running_server

AT = datetime(2026, 11, 20, 15, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "costs.db"
    with CostOpsClient(base_url=f"sqlite:///{path}") as client:
        client.usage.submit_batch(records())
    return path


def records() -> list[UsageRecord]:
    base: dict[str, Any] = {"organization_id": "acme", "input_tokens": 1000, "output_tokens": 500}
    return [
        UsageRecord(**base, provider="openai", model_id="gpt-4o", timestamp=AT + timedelta(hours=1)),
        UsageRecord(
            **base,
            provider="openai",
            model_id="gpt-4o",
            timestamp=AT,
            tags=["a,b", 'c"d'],
            labels={"team": "search"},
            meters={"web_searches": 1},
            idempotency_key="k",
            user_id='=1+1;"x", y',
        ),
        UsageRecord(**base, provider="house", model_id="m", timestamp=AT, service_tier="flex"),
    ]


def run(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_csv_has_every_field(database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "usage.csv"
    assert run("export", "--db", database, "--output", target) == 0
    assert capsys.readouterr().err == f"3 records in {target}\n"
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["timestamp"] for row in rows] == [
        "2026-11-20T15:00:00Z",
        "2026-11-20T15:00:00Z",
        "2026-11-20T16:00:00Z",
    ]
    assert set(rows[0]) == set(UsageRecord.__struct_fields__) - {"unknown_"}
    [special] = [row for row in rows if row["idempotency_key"] == "k"]
    assert json.loads(special["tags"]) == ["a,b", 'c"d']
    assert json.loads(special["labels"]) == {"team": "search"}
    assert special["user_id"] == '=1+1;"x", y'
    assert special["metadata"] == special["operation"] == special["latency_ms"] == ""
    [unpriced] = [row for row in rows if row["provider"] == "house"]
    assert (unpriced["estimated_cost"], unpriced["cost_status"]) == ("", "unpriced")
    assert rows[2]["estimated_cost"] == "0.0075"


def test_jsonl_is_imported_again(database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "--db", database, "--label", "team=search", "--provider", "openai") == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["idempotency_key"] == "k"
    target = tmp_path / "usage.jsonl"
    assert run("export", "--db", database, "--output", target) == 0
    assert run("import", target, "--db", tmp_path / "copy.db") == 0
    assert run("costs", "--db", tmp_path / "copy.db", "--json") == 0
    copied = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert run("costs", "--db", database, "--json") == 0
    assert json.loads(capsys.readouterr().out) == copied


def test_an_export_that_fails_leaves_the_file_as_it_was(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "usage.csv"
    target.write_text("what was there")
    assert run("export", "--db", database, "--output", target, "--status", "cheap") == 2
    assert run("export", "--db", database, "--output", tmp_path / "none" / "x.csv") == 2
    assert f"there is no folder {tmp_path / 'none'}\n" in capsys.readouterr().err
    assert target.read_text() == "what was there"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".db"]
    assert run("export", "--db", database, "--output", tmp_path / "missing" / "usage.csv") == 2


def test_an_export_into_a_pipe_is_written_to_it(database: Path, tmp_path: Path) -> None:
    """A file was put in its place, and in that of a device such as /dev/null, which root may replace."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert run("export", "--db", database, "--output", pipe) == 0
    assert pipe.is_fifo()
    assert os.read(reading, 64 * 1024).count(b"\n") == 3
    os.close(reading)


def test_an_export_over_a_link_leaves_the_link_and_the_mode_of_the_file(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    target.write_text("what was there")
    target.chmod(0o600)
    link.symlink_to(target)
    assert run("export", "--db", database, "--output", link) == 0
    assert link.is_symlink()
    lost = tmp_path / "lost.jsonl"
    lost.symlink_to(tmp_path / "nowhere" / "usage.jsonl")
    assert run("export", "--db", database, "--output", lost) == 2
    assert capsys.readouterr().err.endswith(f"there is no folder {tmp_path / 'nowhere'}\n")
    assert target.read_bytes().startswith(b"{")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_an_export_is_named_as_what_it_is(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "usage.parquet"
    assert run("export", "--db", database, "--output", path) == 2
    assert "--format" in capsys.readouterr().err
    assert not path.exists()
    assert run("export", "--db", database, "--output", path, "--format", "csv") == 0
    assert path.read_text().startswith("id,")


def test_an_export_takes_no_more_memory_for_more_records() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        made = (
            UsageRecord(organization_id="o", user_id=f"{n}", labels={"n": "x" * 50}) for n in range(count)
        )
        for lines in (csv_lines, jsonl_lines):
            for _ in lines(made):
                pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(10)
    assert peak(5000) < peak(100) + 50_000


def test_an_export_over_the_network(tmp_path: Path) -> None:
    listeners = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with running_server(tmp_path, *listeners, "--durability", "process") as urls:
        with CostOpsClient(base_url=urls["http"]) as client:
            many = [
                UsageRecord(organization_id="o", provider="openai", model_id="gpt-4o", input_tokens=n)
                for n in range(2500)
            ]
            client.usage.submit_batch(many)
        for transport, url in urls.items():
            target = tmp_path / f"{transport}.jsonl"
            assert run("export", "--base-url", url, "--output", target) == 0
            counts = [json.loads(line).get("input_tokens", 0) for line in target.read_text().splitlines()]
            assert sorted(counts) == list(range(2500))


def test_estimate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLM_COST_OPS_BASE_URL", raising=False)
    assert run("estimate", "openai", "gpt-4o", "--input", 1000, "--cached", 200, "--output", 500) == 0
    shown = capsys.readouterr().out
    assert "0.00725" in shown
    assert "CACHE_READ" in shown
    assert "openai/gpt-4o" in shown
    assert run("estimate", "openai", "no-such-model", "--input", 1, "--at", "2026-01-01") == 1
    shown = capsys.readouterr().out
    assert "No price is known" in shown
    assert "prices add openai/no-such-model" in shown
    assert run("estimate", "openai/gpt4o", "--input", 1) == 1
    assert "did you mean openai/gpt-4o" in capsys.readouterr().out
    assert run("estimate", "openai", "gpt-4o", "--input", 1, "--cached", 2) == 2
    assert "--cached must be at most input_tokens" in capsys.readouterr().err
    for bad in (("--at", "noon"), ("--meter", "pages"), ("--meter", "pages=x")):
        assert run("estimate", "openai", "gpt-4o", *bad) == 2
    capsys.readouterr()
    assert run("estimate", "openai", "gpt-4o") == 2
    assert "say how much is used" in capsys.readouterr().err
    assert run("estimate", "openai", "gpt-4o", "--input", 0) == 0, "nothing costs nothing"
    assert list(tmp_path.iterdir()) == [], "an estimate makes no database"


def test_a_model_is_named_with_its_provider_in_one_word_or_two(capsys: pytest.CaptureFixture[str]) -> None:
    for named in (("openai/gpt-4o",), ("openai", "gpt-4o")):
        assert run("estimate", *named, "--input", 1000, "--json") == 0
        assert json.loads(capsys.readouterr().out)["total_cost"] == "0.0025"
    assert run("estimate", "gpt-4o", "--input", 1000) == 2
    assert "openai/gpt-4o" in capsys.readouterr().err
    for command in (["estimate"], ["prices", "add"]):
        assert run(*command, "openai", "gpt", "4o", "--input", 1) == 2
        assert "name one model" in capsys.readouterr().err


def test_reprice(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        client.pricing.create(
            provider="house", model_id="m", input_price_per_1k="1", effective_date="2020-01-01"
        )
    assert run("reprice", "--db", database, "--dry-run") == 0
    assert "1 of 3 records would get another cost" in capsys.readouterr().out
    assert run("reprice", "--db", database) == 0
    shown = capsys.readouterr().out
    assert "house" in shown
    assert "1 → 0" in shown
    assert run("reprice", "--db", database) == 0
    assert capsys.readouterr().out == "0 of 3 records got another cost\n"


@pytest.mark.parametrize(
    ("alias", "provider"), [("bedrock", "aws"), ("OpenAI", "openai"), ("gemini", "google")]
)
def test_prices_are_listed_by_any_name_of_a_provider(
    capsys: pytest.CaptureFixture[str], alias: str, provider: str
) -> None:
    listed = []
    for name in (alias, provider):
        assert run("prices", "list", "--provider", name, "--json") == 0
        listed.append(json.loads(capsys.readouterr().out))
    assert listed[0] == listed[1]
    assert all(row["model"].startswith(f"{provider}/") for row in listed[0])


def test_prices_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prices", "list", "gpt-4o", "--provider", "openai") == 0
    shown = capsys.readouterr().out
    assert "gpt-4o-mini" in shown
    assert load.load_catalog().version in shown
    assert run("prices", "show", "openai/gpt-4o") == 0
    assert "1.25" in (shown := capsys.readouterr().out)
    assert run("prices", "show", "openai", "gpt-4o") == 0
    assert capsys.readouterr().out == shown
    assert run("prices", "list", "no", "such", "model") == 1
    assert "No model of the catalog has such a name.\n" in capsys.readouterr().out
    assert run("prices", "list", "gpt4o") == 1
    assert "such a name; did you mean openai/gpt-4o, " in capsys.readouterr().out
    assert run("prices", "show", "openai/gpt-4oo") == 2
    assert "has no model 'openai/gpt-4oo'; did you mean openai/gpt-4o, " in capsys.readouterr().err
    assert run("prices", "show", "gpt-4o") == 2
    meant = capsys.readouterr().err.partition("did you mean ")[2]
    assert "openai/gpt-4o" in meant.rstrip("?\n").split(", "), "many providers sell a model of that name"


def test_stated_costs_are_compared_with_the_cards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    when = "2026-11-20T15:00:00Z"
    call = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1001, "timestamp": when}
    calls: list[dict[str, object]] = [
        # 0.0025025 by the card: right to the last digit, right as far as it is stated, and wrong.
        {**call, "reported_cost": "0.0025025"},
        {**call, "reported_cost": "0.0025"},
        {**call, "reported_cost": "0.0035"},
        {**call, "reported_cost": "0.0035", "reported_currency": "EUR"},
        {**call, "model_id": "m", "provider": "acme", "reported_cost": "0.004"},
        # A gateway's statement is compared as well, though it is what is recorded.
        {**call, "provider": "openrouter", "model_id": "openai/gpt-4o", "reported_cost": "0.0025025"},
        {**call, "cached_tokens": 5000, "reported_cost": "1"},
        call,
    ]
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in calls), encoding="utf-8")
    assert run("prices", "check", str(path)) == 0
    *rows, last = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert " ".join(last) == (
        "6 calls state their cost, 3 differ from the price cards; 1 state none, 1 lines are no valid calls"
    )
    assert rows[2:] == [
        ["acme/m", "1", "1", "0.004", "USD", "unpriced"],
        ["openai/gpt-4o", "1", "1", "0.0035", "EUR", "unpriced"],
        ["openai/gpt-4o", "3", "1", "0.0085025", "USD", "0.0075075", "-0.000995", "priced"],
        ["openrouter/openai/gpt-4o", "1", "0", "0.0025025", "USD", "0.0025025", "0.00", "priced"],
    ]
    many = {**call, "input_tokens": 1_000_000_000, "reported_cost": "2000"}
    path.write_text(json.dumps(many) + "\n", encoding="utf-8")
    assert run("prices", "check", str(path), "--json") == 0
    [row] = json.loads(capsys.readouterr().out)
    figures = {
        "calls": 1,
        "differ": 1,
        "stated": "2000",
        "currency": "USD",
        "cards": "2500",
        "difference": "500",
    }
    assert row == {"model": "openai/gpt-4o", **figures, "status": "priced"}
    path.write_text(json.dumps(call) + "\n", encoding="utf-8")
    assert run("prices", "check", str(path)) == 0
    assert capsys.readouterr().out.startswith("0 calls state their cost, 0 differ")


def test_prices_of_a_part_of_a_day_show_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prices", "show", "x-ai/grok-3") == 0
    shown = capsys.readouterr().out
    assert "\nuntil 2026-05-15 19:00 UTC\n\n" in shown, "a card's dates stand at the end of its table"
    assert "\nfrom 2026-05-15 19:00 UTC\n\n" in shown
    assert run("prices", "show", "deepseek/deepseek-reasoner") == 0
    assert "from 2025-09-05 16:00 UTC until 2025-09-29\n" in capsys.readouterr().out


def test_a_kind_in_a_cards_id_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    card = next(card for card in load.load_catalog() if card.id.endswith("[flex]") and "@" not in card.id)
    assert run("prices", "show", f"{card.provider}/{card.model_id}") == 0
    assert card.id in capsys.readouterr().out


def test_a_catalog_is_compared_and_put_in_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    bundled = load.load_catalog().path
    before = use_catalog(None)
    try:
        assert run("prices", "diff", bundled) == 0
        assert "No price differs." in capsys.readouterr().out
        assert run("prices", "diff", bundled, bundled, bundled) == 2
        assert run("prices", "update", bundled) == 0
        assert "was in force already" in capsys.readouterr().out
        assert (tmp_path / "data" / "llm-cost-ops" / "prices.bin").is_file()
        broken = tmp_path / "broken.bin"
        broken.write_bytes(Path(bundled).read_bytes()[:-100])
        for source in (broken, tmp_path / "none.bin", "http://example.test/prices.bin"):
            assert run("prices", "update", source) == 2
        assert run("prices", "update", bundled, "--sha256", "0" * 64) == 2
        assert "SHA-256" in capsys.readouterr().err
        assert load.load_catalog().path.endswith("prices.bin")
    finally:
        use_catalog(before)


def test_costs_take_every_filter(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value, requests in (
        ("--service-tier", "flex", 1),
        ("--status", "unpriced", 1),
        ("--user", '=1+1;"x", y', 1),
        ("--tag", "a,b", 1),
        ("--organization", "globex", 0),
        ("--end", "2026-11-20", 3),
    ):
        assert run("costs", "--db", database, "--json", "--group-by", "none", option, value) == 0
        assert json.loads(capsys.readouterr().out)["total_requests"] == requests, option
    assert run("costs", "--db", database, "--group-by", "meter") == 0
    assert "WEB_SEARCHES" in capsys.readouterr().out
    assert plain(Decimal("1.50")) == Decimal("1.5")


def test_a_question_to_a_database_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLM_COST_OPS_BASE_URL", raising=False)
    for command in ("costs", "export", "reprice"):
        assert run(command, "--db", "csts.db") == 2
        assert "there is no database csts.db" in capsys.readouterr().err
        assert run(command) == 2
        assert "there is no database llm_cost_ops.db: name one by --db" in capsys.readouterr().err
    assert run("estimate", "openai", "gpt-4o", "--input", "1000") == 0
    assert "0.0025" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_period_that_is_no_word_and_a_group_that_is_none_tell_what_there_is(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--start", "--end"):
        assert run("costs", "--db", database, option, "yestreday") == 2
        assert f"{option} must be a date" in (said := capsys.readouterr().err)
        assert "yesterday" in said
    assert run("costs", "--db", database, "--by", "modle") == 2
    assert "--by must be one of none, provider, model" in (said := capsys.readouterr().err)
    assert "not 'modle'" in said


def test_an_export_into_a_pipe_that_closes(database: Path) -> None:
    command = [sys.executable, "-m", "llm_cost_ops.cli", "export", "--db", str(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_costs_in_a_currency_that_nothing_cost_tell_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = f"{tmp_path / 'costs.db'}"
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        client.usage.submit(organization_id="a", provider="openai", model_id="gpt-4o", output_tokens=1000)
    assert cli.main(["costs", "--db", database, "--currency", "EUR"]) == 0
    printed = capsys.readouterr().out
    assert [line.strip() for line in printed.splitlines()] == [
        "nothing has a cost in EUR; there is:",
        "0.01 USD for 1 request",
        "Ask with --currency USD.",
    ]
    assert cli.main(["costs", "--db", database, "--currency", "EUR", "--organization", "nobody"]) == 0
    assert "0.00 EUR for 0 requests" in capsys.readouterr().out
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        client.pricing.create(
            provider="p", model_id="m", currency="EUR", output_price_per_1k="1", effective_date="2020-01-01"
        )
        client.usage.submit(organization_id="a", provider="p", model_id="m", output_tokens=1000)
    assert cli.main(["costs", "--db", database, "--currency", "EUR"]) == 0
    printed = capsys.readouterr().out
    assert "1.00 EUR for 2 requests" in printed
    assert "and 0.01 USD for 1 of them" in printed
    assert cli.main(["costs", "--db", database, "--by", "model", "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["model"], row["cost"], row["currency"], row["cost_eur"]) for row in rows] == [
        ("gpt-4o", "0.01", "USD", "0"),
        ("m", "0", "USD", "1"),
    ]
    assert cli.main(["costs", "--db", database, "--by", "model", "--plot"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("m ")]
    assert line.split() == ["m", "-", "1.00", "EUR"]


def test_costs_tell_what_providers_reported(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("costs", "--db", database) == 0
    assert "reported" not in capsys.readouterr().out
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        reported = {"provider": "nobody", "model_id": "m", "input_tokens": 1, "reported_cost": "0.25"}
        client.usage.submit(organization_id="acme", **reported)
    assert run("costs", "--db", database) == 0
    assert "0.25 USD of it is what providers reported, for 1 request." in capsys.readouterr().out


def test_usage_is_corrected_voided_and_its_revisions_shown(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--db", database, "--organization", "acme")
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        [record] = client.usage.get_history(label={"team": "search"}).data
    changes = ("--set", "input_tokens=2000", "--set", "tags=null", "--set", "model_id=gpt-4o-mini")
    assert run("usage", "correct", record.id, *place, "--reason", "wrong model", *changes) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[2].split()[3:7] == ["openai/gpt-4o-mini", "2,000", "500", "0.0106"]
    assert shown.splitlines()[2].endswith("wrong model")
    assert run("usage", "void", record.id, *place, "--reason", "a test") == 0
    capsys.readouterr()
    assert run("usage", "revisions", record.id, *place, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [(line["revision"], line["kind"], line["usage"]["model_id"], line["reason"]) for line in lines]
    assert found == [
        (1, "recorded", "gpt-4o", ""),
        (2, "corrected", "gpt-4o-mini", "wrong model"),
        (3, "voided", "gpt-4o-mini", "a test"),
    ]
    assert run("costs", "--db", database, "--json") == 0
    assert json.loads(capsys.readouterr().out)["total_requests"] == 2
    assert run("usage", "correct", record.id, *place, "--reason", "r", "--set", "input_tokens=1") == 2
    assert "was voided" in capsys.readouterr().err
    assert run("usage", "void", "no-such-id", *place, "--reason", "r") == 2
    assert "no usage record" in capsys.readouterr().err
