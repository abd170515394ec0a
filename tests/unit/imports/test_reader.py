"""What every file has in common: fields given for all records, mapped columns, and what is said of it."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import ConfigurationError, CostOpsClient, UsageRecord
from llm_cost_ops.cli import main
from tests.unit.imports.files import lines, opened, read

CALL = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000, "output_tokens": 500}
CHAT = {
    "id": "chatcmpl-S1",
    "object": "chat.completion",
    "created": 1773144000,
    "model": "gpt-4o",
    "choices": [],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500},
}
SHAPES: list[dict[str, Any]] = [
    CALL,
    CHAT,
    {"response": CHAT},
    {"response": CHAT, "organization_id": "theirs", "provider": "groq", "project_id": "theirs"},
    {**CALL, "organization_id": "theirs", "idempotency_key": "k"},
    {"custom_id": "c", "response": {"status_code": 200, "body": CHAT}},
]


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_what_is_given_wins_on_every_shape(shape: int) -> None:
    given = {
        "organization_id": "o",
        "provider": "openrouter",
        "project_id": "p",
        "labels.a": "b",
        "tags": "x,y",
    }
    [record] = read(lines(SHAPES[shape]), given=given)
    assert (record.organization_id, record.provider, record.project_id) == ("o", "openrouter", "p")
    assert (record.labels, record.tags) == ({"a": "b"}, ["x", "y"])
    assert (record.input_tokens, record.output_tokens) == (1000, 500)


def test_a_count_that_is_given_changes_the_total() -> None:
    [record] = read(lines(CHAT), given={"input_tokens": "7"})
    assert (record.input_tokens, record.output_tokens, record.total_tokens) == (7, 500, None)


def test_a_column_that_comes_twice_is_refused_where_it_is_read() -> None:
    table = b"provider,model_id,input_tokens,input_tokens,output_tokens%b\nopenai,gpt-4o,1,2,3%b\n"
    mapped = {"model_id": "model_id", "input_tokens": "output_tokens+input_tokens"}
    for mapping in ({}, mapped):
        with pytest.raises(ConfigurationError, match="column 'input_tokens' more than once"):
            read(table % (b"", b""), "x.csv", mapping=mapping)
    mapped["input_tokens"] = "output_tokens"
    [record] = read(table % (b",note,note,,", b",a,b,,"), "x.csv", mapping=mapped)
    assert record.input_tokens == 3


@pytest.mark.parametrize(
    ("written", "cost"),
    [("2e-08", "0.00000002"), ("1.5E-5", "0.000015"), ("0.015", "0.015"), ("1e+2", "100"), ("0e-9", "0")],
)
def test_floats_as_python_writes_them(written: str, cost: str) -> None:
    mapping = {"model_id": "model", "input_tokens": "tokens", "reported_cost": "cost"}
    table = f"model,tokens,cost\ngpt-4o,1000.0,{written}\n".encode()
    [row] = read(table, "x.csv", mapping=mapping)
    [field] = read(b'{"model":"gpt-4o","tokens":1000.0,"cost":%b}' % written.encode(), mapping=mapping)
    for record in (row, field):
        assert (record.input_tokens, record.reported_cost) == (1000, Decimal(cost))


@pytest.mark.parametrize("written", ["1.000", "1000.00", "1000.5", "1e3", "NaN", "inf", "1,000", ".0"])
def test_what_may_be_another_count_is_no_count(written: str) -> None:
    table = f"model;tokens\ngpt-4o;{written}\n".encode()
    [item] = opened(table, "x.csv", mapping={"model_id": "model", "input_tokens": "tokens"})
    assert "input_tokens must be a whole number" in str(item.record)


@pytest.mark.parametrize("written", ["NaN", "Infinity", "1e99", "1e-30", "1e-99999", "0,1", "$1"])
def test_what_is_no_amount_is_refused(written: str) -> None:
    table = f"model;tokens;cost\ngpt-4o;1;{written}\n".encode()
    mapping = {"model_id": "model", "input_tokens": "tokens", "reported_cost": "cost"}
    [item] = opened(table, "x.csv", mapping=mapping)
    assert "reported_cost must be a decimal" in str(item.record)


def test_a_cell_that_is_no_truth_is_refused() -> None:
    table = b"provider,model_id,input_tokens,observation\nopenai,gpt-4o,1,%b\n"
    for text, truth in ((b"TRUE", True), (b"1", True), (b"false", False), (b"", False)):
        [record] = read(table % text, "x.csv")
        assert record.observation is truth
    [item] = opened(table % b"yes", "x.csv")
    assert item.record == "observation must be true or false, not 'yes'"


def test_columns_are_summed() -> None:
    table = b"model;fresh;read;a+b\ngpt-4o;10;5;3\ngpt-4o;10;;\ngpt-4o;;;\n"
    mapping = {
        "model_id": "model",
        "input_tokens": "fresh+read",
        "cached_tokens": "read",
        "output_tokens": "a+b",
    }
    found = read(table, "t.csv", mapping=mapping, given={"provider": "openai"})
    counts = [(record.input_tokens, record.cached_tokens, record.output_tokens) for record in found]
    assert counts == [(15, 5, 3), (10, 0, None), (None, 0, None)]


def test_a_cell_of_a_sum_that_is_no_count_is_named() -> None:
    [item] = opened(b"a,b\n1,x\n", "t.csv", mapping={"input_tokens": "a+b"})
    assert item.record == "column 'b': input_tokens must be a whole number, not 'x'"
    [item] = opened(b"a,b\n1,2\n", "t.csv", mapping={"model_id": "a+b"})
    assert item.record == "column 'a': model_id can't be a sum of columns"


def test_paths_of_json_are_columns() -> None:
    log = lines({"req": {"model": "gpt-4o"}, "u": {"in": 3, "cached": 2, "out": 5}, "metadata": {"x": 1}})
    mapping = {"model_id": "req.model", "input_tokens": "u.in+u.cached", "output_tokens": "u.out"}
    [record] = read(log, mapping=mapping, given={"provider": "openai"})
    assert (record.model_id, record.input_tokens, record.output_tokens) == ("gpt-4o", 5, 5)


def test_a_path_that_is_nowhere_is_told() -> None:
    log = lines({"m": "gpt-4o", "u": {"in": 3, "out": None}})
    given = {"provider": "openai"}
    mapping = {"model_id": "m", "input_tokens": "u.in", "output_tokens": "u.out", "user_id": "who"}
    [item, last] = opened(log, mapping=mapping, given=given)
    assert isinstance(item.record, UsageRecord)
    assert item.record.output_tokens is None
    assert last.record == "--map user_id=who: no object has that"
    [item] = (
        opened(log, mapping={"model_id": "m", "input_tokens": "u.inn"}, given=given)[:1]
        if False
        else list(opened(log, mapping={"model_id": "m", "input_tokens": "u.inn"}, given=given))[:1]
    )
    assert item.record == "has no 'u.inn', which is to be input_tokens"


def test_a_misspelt_count_in_a_line_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_bytes(
        lines(CALL, {**CALL, "output_tokns": 5}, {"provider": "x", "model_id": "m", "inputTokens": 5})
    )
    assert main(["import", str(path), "--db", str(tmp_path / "c.db")]) == 1
    printed, complaints = capsys.readouterr()
    assert "1 recorded" in printed
    assert "line 2: output_tokns is not a known field: did you mean output_tokens?" in complaints
    assert "line 3: inputTokens is not a known field: did you mean input_tokens?" in complaints


def test_the_sums_that_are_printed_are_of_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_bytes(lines(CHAT, CHAT))
    command = ["import", str(path), "--db", str(tmp_path / "c.db")]
    assert main(command) == 0
    assert "1 recorded, 1 were there before" in (printed := capsys.readouterr().out)
    assert "1,500 tokens, 0.0075 USD" in printed
    assert main(command) == 0
    assert "0 tokens, no cost" in capsys.readouterr().out


def test_a_record_without_counts_is_unpriced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "usage.jsonl"
    nothing = {"provider": "openai", "model_id": "gpt-4o"}
    path.write_bytes(lines(nothing, {**nothing, "input_tokens": None}, {**nothing, "input_tokens": 0}))
    database = str(tmp_path / "c.db")
    assert main(["import", str(path), "--db", database]) == 0
    assert "0 tokens, 0.00 USD, 2 unpriced" in capsys.readouterr().out
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        statuses = [record.cost_status.value for record in client.usage.get_history().data]
    assert sorted(statuses) == ["priced", "unpriced", "unpriced"]


def test_an_unknown_file_says_what_was_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_bytes(lines({"promptTok": 5, "modelName": "gpt-4o"}))
    assert main(["import", str(path), "--db", str(tmp_path / "c.db")]) == 1
    complaints = capsys.readouterr().err
    assert "Claude Code session log" in complaints
    assert "--map model_id=modelName --map input_tokens=promptTok" in complaints
    path = tmp_path / "usage.csv"
    path.write_text("When,ContextTokens,Vendor,Model Name\n1,2,3,4\n")
    assert main(["import", str(path), "--db", str(tmp_path / "c.db")]) == 2
    complaints = capsys.readouterr().err
    # As a shell takes it.
    assert "--map provider=Vendor --map 'model_id=Model Name' --map input_tokens=ContextTokens" in complaints
    assert "Anthropic console CSV" in complaints
    assert "--map input_tokens=ContextTokens" in complaints


@pytest.mark.parametrize(
    "name", ["x#y.db", "a b.db", "q?durability=process.db", "100%25.db", "c:d.db", "ü.db"]
)
def test_a_database_is_a_path_whatever_its_signs(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("usage.jsonl").write_bytes(lines(CALL))
    for database in (name, str(tmp_path / "deep" / name), f"./{name}"):
        Path(database).parent.mkdir(exist_ok=True)
        assert main(["import", "usage.jsonl", "--db", database]) == 0
        assert Path(database).is_file()
        assert main(["costs", "--db", database]) == 0
    made = {path.name.removesuffix("-wal").removesuffix("-shm") for path in tmp_path.iterdir()}
    assert made == {name, "deep", "usage.jsonl"}
    assert main(["costs", "--db", f"no {name}"]) == 2
    assert f"there is no database no {name}" in capsys.readouterr().err


def test_a_database_may_be_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("usage.jsonl").write_bytes(lines(CALL))
    assert main(["import", "usage.jsonl", "--db", "sqlite:///a%20b.db"]) == 0
    assert Path("a b.db").is_file()


def test_standard_input_may_be_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, data in enumerate(
        (gzip.compress(lines(CALL)), json.dumps([CALL], indent=2).encode("utf-16"))
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main(["import", "-", "--db", str(tmp_path / f"{number}.db")]) == 0
    table = io.BytesIO(b"provider\tmodel_id\tinput_tokens\nopenai\tgpt-4o\t5\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(table))
    assert main(["import", "-", "--db", str(tmp_path / "t.db")]) == 0


def test_a_truncated_file_is_told_and_its_beginning_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "usage.jsonl.gz"
    path.write_bytes(gzip.compress(lines(*[{**CALL, "input_tokens": n} for n in range(9999)]))[:-200])
    assert main(["import", str(path), "--db", str(tmp_path / "c.db")]) == 1
    assert "the compressed file is broken or ends before it is complete" in capsys.readouterr().err


TABLE = "provider,model_id,input_tokens,output_tokens\n" + "openai,gpt-4o,5179,2930\n" * 2


@pytest.mark.parametrize("cut", range(1, 24, 2))
def test_the_last_row_of_a_table_that_is_cut_off_is_not_recorded(cut: int) -> None:
    found = list(opened(TABLE.encode("utf-16")[:-cut], "usage.csv"))
    assert [item.record.output_tokens for item in found if isinstance(item.record, UsageRecord)] == [2930]
    assert [(item.line, item.record) for item in found if isinstance(item.record, str)] == [
        (3, "is cut off"),
        (4, "the file is not UTF-16 from here on: truncated data"),
    ]


def test_a_last_line_without_an_end_is_a_row_like_the_others() -> None:
    file = opened(TABLE.encode().rstrip(), "usage.csv")
    found = [item.record.output_tokens for item in file if isinstance(item.record, UsageRecord)]
    assert (found, file.notes) == ([2930, 2930], [])


def test_a_last_row_with_fewer_columns_is_not_recorded() -> None:
    found = list(opened(TABLE.encode()[:-6], "usage.csv"))
    assert [item.record for item in found[1:]] == ["has 3 columns, the header 4"]


@pytest.mark.parametrize("mapping", [None, {"model_id": "model"}], ids=["known", "mapped"])
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the file has no header"),
        (gzip.compress(TABLE.encode())[:-20], "the compressed file is broken or ends before it is complete"),
    ],
    ids=["empty", "broken"],
)
def test_a_table_without_a_header_is_refused(data: bytes, why: str, mapping: dict[str, str] | None) -> None:
    with pytest.raises(ConfigurationError, match=why):
        list(opened(data, "usage.csv.gz", mapping=mapping))


def test_an_export_in_csv_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    with CostOpsClient(base_url=f"sqlite:///{first}") as client:
        client.usage.submit(**CALL, organization_id="a", labels={"team": "x, y"}, tags=["a,b", "c"])
        client.usage.submit(**CALL, organization_id="a", meters={"pages": 3}, metadata={"a": [1]})
    exported = []
    for database in (first, second):
        for kind in ("csv", "jsonl"):
            output = str(database.with_suffix(f".{kind}"))
            assert main(["export", "--db", str(database), "--output", output]) == 0
        found = [json.loads(line) for line in database.with_suffix(".jsonl").read_text().splitlines()]
        exported.append([{**record, "ingested_at": ""} for record in found])
        if database == first:
            assert main(["import", str(first.with_suffix(".csv")), "--db", str(second)]) == 0
    assert exported[0] == exported[1]
    assert "2 recorded" in capsys.readouterr().out


def test_memory_is_that_of_a_piece(tmp_path: Path) -> None:
    """An array of 40 MB on one line is taken apart as it is read."""
    path = tmp_path / "big.json"
    record = json.dumps({**CALL, "metadata": {"x": "y" * 400}})
    with path.open("w") as file:
        file.write("[" + record)
        for _ in range(80_000):
            file.write("," + record)
        file.write("]")
    program = (
        "import resource, sys\n"
        "from llm_cost_ops.imports import UsageFile\n"
        "with open(sys.argv[1], 'rb') as stream:\n"
        "    iterator = iter(UsageFile(stream, 'big.json'))\n"
        "    next(iterator)\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    count = 1 + sum(1 for _ in iterator)\n"
        "    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    count, grown = map(int, done.stdout.split())
    assert count == 80_001
    # ru_maxrss is in KiB.
    assert grown < 8 * 1024
