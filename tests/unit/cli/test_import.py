"""`llm-cost-ops import`: exact, itemised, and safe to run twice."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops._gen.messages import BatchReceipt, UsageRecord
from llm_cost_ops._gen.resources import UsageResource
from llm_cost_ops.cli import main
from tests.conformance.clients import running_server

MAPPING = [
    "--map",
    "input_tokens=ContextTokens",
    "--map",
    "output_tokens=GeneratedTokens",
    "--map",
    "timestamp=TIMESTAMP",
]
MODEL = ["--set", "provider=openai", "--set", "model_id=gpt-4o"]
# gpt-4o, per token.
INPUT, OUTPUT = Decimal("0.0000025"), Decimal("0.00001")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace in the form of the Azure LLM inference trace: seven digits after the second."""
    random.seed(7)
    path = tmp_path / "trace.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
        for second in range(3000):
            fraction = f"{random.randrange(10**7):07}"
            clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{fraction}"
            writer.writerow([f"2025-11-16 {clock}", random.randrange(1, 8000), random.randrange(1, 1000)])
    return path


def totals(path: Path) -> tuple[int, Decimal]:
    """The independent sum."""
    tokens, cost = 0, Decimal(0)
    with path.open() as stream:
        for row in csv.DictReader(stream):
            read, written = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            tokens += read + written
            cost += read * INPUT + written * OUTPUT
    return tokens, cost


def test_a_trace_is_counted_exactly_and_once(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = str(tmp_path / "costs.db")
    command = ["import", str(trace), "--db", database, *MAPPING]
    assert main([*command, *MODEL]) == 0
    tokens, cost = totals(trace)
    printed = capsys.readouterr().out
    assert "3,000 recorded, 0 were there before, 0 in conflict, 0 invalid" in printed
    assert f"{tokens:,} tokens, {cost.normalize():f} USD" in printed
    assert main([*command, *MODEL]) == 0
    assert "0 recorded, 3,000 were there before" in capsys.readouterr().out
    # The same rows as another model are another content under the same keys.
    assert main([*command, "--set", "provider=openai", "--set", "model_id=gpt-4o-mini"]) == 1
    printed, complaints = capsys.readouterr()
    assert "3,000 in conflict" in printed
    assert "line 2: the idempotency key was used before" in complaints
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        summary = client.costs.get()
        assert (summary.total_cost, summary.total_tokens, summary.total_requests) == (cost, tokens, 3000)
        last = client.usage.get_history(page_size=1, order="asc").data[0]
        assert last.timestamp is not None
        assert last.timestamp.microsecond


def test_bad_rows_are_told_by_line_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
        b"2025-11-16 18:15:46.6805900,374,44\n"
        b"2025-11-16 18:15:47,-5,44\n"
        b"\n"
        b"yesterday,1,2\n"
        b"2025-11-16 18:15:48,many,2\n"
        b"2025-11-16 18:15:48,1\n"
        b'2025-11-16 18:15:49,"2",3\n'
        b"2025-11-16 18:15:50,1.5,3\n"
        b"2025-11-16 18:15:50,\xff,3\n"
        b"2025-11-16 18:15:51,99999999999999999999999,3\n"
    )
    assert main(["import", str(path), "--db", str(tmp_path / "c.db"), *MAPPING, *MODEL]) == 1
    printed, complaints = capsys.readouterr()
    assert "2 recorded, 0 were there before, 0 in conflict, 7 invalid" in printed
    told = {int(found) for found in re.findall(r"^line (\d+): ", complaints, re.MULTILINE)}
    assert told == {3, 5, 6, 7, 9, 10, 11}
    assert "input_tokens must be" in complaints
    assert "columns" in complaints
    assert "records[" not in complaints


@pytest.mark.parametrize("sign", ["\x1b[31m", "\x9b", "\r", "\x7f"])
def test_what_stands_in_a_file_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sign: str
) -> None:
    spelt = repr(sign)[1:-1]
    database = ("--db", str(tmp_path / "c.db"))
    for name, content in (
        ("unknown.jsonl", json.dumps({"provider": "openai", "model_id": "m", f"a{sign}b": 1})),
        ("no-shape.jsonl", json.dumps({f"a{sign}b": 1})),
        ("table.csv", f'"a{sign}b",c\n1,2\n'),
        (f"a{sign}b.jsonl", None),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content.encode())
        assert main(["import", str(path), *database]) > 0
        told = capsys.readouterr()
        assert f"a{spelt}b" in told.err
        assert sign not in told.err + told.out


def test_jsonl_of_records_responses_and_envelopes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1763300000,
        "model": "gpt-4o-2024-08-06",
        "choices": [],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500},
    }
    lines = [
        json.dumps(
            {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000}
        ),
        json.dumps(chat),
        json.dumps({"response": {**chat, "id": "chatcmpl-2"}, "project_id": "p", "organization_id": "acme"}),
        "{not json",
        "[1, 2]",
        "",
        json.dumps(
            {"response": {**chat, "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 9}}}
        ),
        json.dumps({"model_id": "x", "provider": "y", "input_tokens": 1, "reported_cost": "1e9"}),
        "[" * 100_000,
    ]
    path = tmp_path / "usage.jsonl"
    path.write_text("\n".join(lines))
    database = str(tmp_path / "c.db")
    command = ["import", str(path), "--db", database]
    assert main(command) == 1
    printed, complaints = capsys.readouterr()
    assert "3 recorded, 0 were there before, 0 in conflict, 5 invalid" in printed
    assert {int(found) for found in re.findall(r"^line (\d+): ", complaints, re.MULTILINE)} == {4, 5, 7, 8, 9}
    assert main(command) == 1
    assert "0 recorded, 3 were there before" in capsys.readouterr().out
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        found = client.costs.get(group_by="organization")
        assert {group.value: group.requests for group in found.breakdown} == {"acme": 2, "default": 1}
        assert found.total_cost == 1000 * INPUT + 2 * (1000 * INPUT + 500 * OUTPUT)


@pytest.mark.parametrize("command", [["import"], ["quickstart"]])
def test_what_names_no_organization_is_that_of_the_environment(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, db = tmp_path / "calls.jsonl", str(tmp_path / "costs.db")
    call = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000, "output_tokens": 500}
    calls = [{**call, "organization_id": "named"}, call]
    file.write_text("".join(json.dumps(each) + "\n" for each in calls), encoding="utf-8")
    monkeypatch.setenv("LLM_COST_OPS_ORGANIZATION_ID", "acme")
    assert main([*command, str(file), "--db", db]) == 0
    with CostOpsClient(base_url=f"sqlite:///{db}") as client:
        groups = client.costs.get(group_by="organization").breakdown
    assert {group.value: group.requests for group in groups} == {"acme": 1, "named": 1}


def test_set_reaches_every_kind_of_line(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_text(
        json.dumps({"provider": "openai", "model_id": "gpt-4o", "input_tokens": 7, "labels": {"a": "b"}})
        + "\n"
        + json.dumps(
            {
                "object": "chat.completion",
                "model": "gpt-4o",
                "usage": {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5},
            }
        )
    )
    database = str(tmp_path / "c.db")
    given = ["--set", "organization_id=acme", "--set", "labels.team=search", "--set", "tags=x,y"]
    assert main(["import", str(path), "--db", database, *given]) == 0
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        records = client.usage.get_history(organization_id="acme").data
    assert {record.input_tokens for record in records} == {5, 7}
    assert all(record.labels["team"] == "search" for record in records)
    assert all(record.tags == ["x", "y"] for record in records)
    assert {"a": "b", "team": "search"} in [record.labels for record in records]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--map", "input_tokens=Nope", *MODEL], "no column 'Nope'"),
        (["--map", "tokens=ContextTokens"], "--map tokens=ContextTokens"),
        (["--map", "input_tokens"], "--map input_tokens"),
        ([], "--map"),
        (["--batch-size", "0", *MAPPING], "--batch-size"),
    ],
)
def test_bad_options(
    trace: Path, tmp_path: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(trace), "--db", str(tmp_path / "c.db"), *arguments]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sizes"), [([], [3000]), (["--batch-size", "2000"], [2000, 1000])], ids=["default", "given"]
)
def test_a_database_takes_more_at_once_than_a_server(
    trace: Path, tmp_path: Path, options: list[str], sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    submit_batch = UsageResource.submit_batch

    def counted(resource: UsageResource, records: Sequence[UsageRecord]) -> BatchReceipt:
        sent.append(len(records))
        return submit_batch(resource, records)

    monkeypatch.setattr(UsageResource, "submit_batch", counted)
    arguments = ["import", str(trace), *MAPPING, *MODEL, "--set", "organization_id=acme", *options]
    assert main([*arguments, "--db", str(tmp_path / "c.db")]) == 0
    assert sent == sizes

    if not options:
        with running_server(tmp_path, "--http", "127.0.0.1:0") as urls:
            assert main([*arguments, "--base-url", urls["http"]]) == 0
        assert sent[1:] == [1000, 1000, 1000]


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(tmp_path / "no.jsonl"), "--db", str(tmp_path / "c.db")]) == 2
    assert "no.jsonl" in capsys.readouterr().err


def test_a_date_is_a_timestamp(tmp_path: Path) -> None:
    path = tmp_path / "days.csv"
    path.write_text("day,tokens\n2026-01-31,5\n")
    database = tmp_path / "costs.db"
    arguments = ["--map", "timestamp=day", "--map", "input_tokens=tokens"]
    arguments += ["--set", "provider=openai", "--set", "model_id=gpt-4o"]
    assert main(["import", str(path), "--db", str(database), *arguments]) == 0
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        [record] = client.usage.get_history().data
    assert record.timestamp == datetime(2026, 1, 31, tzinfo=UTC)


def test_a_key_that_comes_twice_in_a_line_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = '{"organization_id": "a", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1}'
    path = tmp_path / "twice.jsonl"
    path.write_text(f'{good}\n{good[:-1]}, "labels": {{"x": "1", "x": "2"}}}}\n')
    assert main(["import", str(path), "--db", str(tmp_path / "costs.db")]) == 1
    printed, complaints = capsys.readouterr()
    assert "1 recorded" in printed
    assert "line 2: labels.x is given more than once" in complaints


def test_an_export_comes_back_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    call = {"organization_id": "a", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 10}
    with CostOpsClient(base_url=f"sqlite:///{first}") as client:
        client.usage.submit(**call)
        client.usage.submit(**call, timestamp="2026-01-01", idempotency_key="mine", metadata={"a": 1})
        client.usage.submit(**call, output_tokens=5, source="gateway", operation="chat")

    def run(*command: str) -> str:
        assert main(list(command)) == 0
        return capsys.readouterr().out

    def exported(database: Path) -> list[dict[str, object]]:
        file = database.with_suffix(".jsonl")
        run("export", "--db", str(database), "--output", str(file))
        records = [json.loads(line) for line in file.read_text().splitlines()]
        assert all(record.pop("ingested_at") for record in records)
        return records

    records = exported(first)
    assert "3 recorded, 0 were" in run("import", str(tmp_path / "first.jsonl"), "--db", str(second))
    assert exported(second) == records
    for source in ("first", "second"):
        for target in (first, second):
            said = run("import", str(tmp_path / f"{source}.jsonl"), "--db", str(target))
            assert "0 recorded, 3 were there before, 0 in conflict" in said


def test_an_export_with_another_time_is_in_conflict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database, file = tmp_path / "costs.db", tmp_path / "export.jsonl"
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        client.usage.submit(organization_id="a", provider="openai", model_id="gpt-4o", input_tokens=10)
    assert main(["export", "--db", str(database), "--output", str(file)]) == 0
    file.write_text(re.sub(r'"timestamp":"[^"]*"', '"timestamp":"2026-01-01T00:00:00Z"', file.read_text()))
    assert main(["import", str(file), "--db", str(database)]) == 1
    assert "0 were there before, 1 in conflict" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "field", "text", "words"),
    [
        ("In", "input_tokens", "abc", "input_tokens must be a whole number, not 'abc'"),
        ("In", "input_tokens", "1.5", "input_tokens must be a whole number, not '1.5'"),
        ("In", "input_tokens", '"1,000"', "input_tokens must be a whole number, not '1,000'"),
        ("When", "timestamp", "01/02/2026", "timestamp must be a time such as 2026-01-31 or"),
        ("Cost", "reported_cost", "$1", "reported_cost must be a decimal such as 0.015, not '$1'"),
        ("About", "metadata", "{bad", "metadata must be a JSON object, not '{bad'"),
        ("Kind", "operation", "chta", "did you mean 'chat'?"),
        ("Pages", "meters.pages", "few", "meters.pages must be a whole number, not 'few'"),
    ],
)
def test_a_bad_cell_is_told_by_line_and_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, field: str, text: str, words: str
) -> None:
    path = tmp_path / "usage.csv"
    path.write_text(f"Out,{column}\n1,{text}\n1,\n")
    mapping = ["--map", "output_tokens=Out", "--map", f"{field}={column}"]
    assert main(["import", str(path), "--db", str(tmp_path / "costs.db"), *mapping, *MODEL]) == 1
    printed, complaints = capsys.readouterr()
    assert complaints.startswith(f"line 2: column '{column}': ")
    assert words in complaints
    assert "1 recorded" in printed
    given = ["--set", f"{field}={text.strip(chr(34))}"]
    assert main(["import", str(path), "--db", str(tmp_path / "costs.db"), *mapping[:2], *given]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('"input_tokens": "12"', "input_tokens: expected a whole number, got text"),
        ('"input_tokens": 1.5', "input_tokens: expected a whole number, got a number with a fraction"),
        ('"input_tokens": 1, "tags": "a"', "tags: expected a list, got text"),
        ('"input_tokens": 1, "metadata": [1]', "metadata: expected an object, got a list"),
        ('"input_tokens": 1, "timestamp": "noon"', "timestamp: expected a time from the years 1 to 9999"),
        ('"input_tokens": ', "is not JSON: invalid character (byte 17)"),
        ('"response": 5', "expected an object, got a whole number"),
        (
            '"organization_id": "a"',
            'give "model_id" and "input_tokens", or put the response under "response"',
        ),
    ],
)
def test_a_bad_line_is_told_without_the_words_of_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_text(f"\n{{{line}}}\n")
    assert main(["import", str(path), "--db", str(tmp_path / "costs.db")]) == 1
    complaints = capsys.readouterr().err
    assert complaints.startswith("line 2: ")
    assert words in complaints
