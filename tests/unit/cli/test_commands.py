"""The other commands: what they print and how they end."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient, __version__
from llm_cost_ops.cli import main
from llm_cost_ops.cli.output import money


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_quickstart_counts_the_examples_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = str(tmp_path / "quickstart.db")
    assert main(["quickstart", "--db", database]) == 0
    first = capsys.readouterr().out
    assert "120 recorded" in first
    assert main(["quickstart", "--db", database]) == 0
    again = capsys.readouterr().out
    assert "0 recorded, 120 were there before" in again
    assert first.splitlines()[-4:] == again.splitlines()[-4:], "the total is the same"
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        by_model = client.costs.get(group_by=["provider", "model"])
    assert by_model.unpriced_requests == 0
    assert f"{money(by_model.total_cost)} USD for 120 requests" in first
    assert sum(group.cost for group in by_model.breakdown) == by_model.total_cost
    for group in by_model.breakdown:
        assert re.search(
            rf"{group.keys[0].value}\s+{re.escape(group.keys[1].value)}.*{re.escape(money(group.cost))}",
            first,
        )


def test_quickstart_shows_a_last_call_of_unknown_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "calls.jsonl"
    file.write_text(
        '{"organization_id": "a", "provider": "openai", "model_id": "gpt-4o", "output_tokens": 1200}'
    )
    assert main(["quickstart", str(file), "--db", str(tmp_path / "q.db")]) == 0
    shown = capsys.readouterr().out
    assert "The last call: openai gpt-4o, ? tokens in (0 cached), 1,200 out: 0.012 USD.\n" in shown


def test_quickstart_without_its_examples_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llm_cost_ops.cli.importing.EXAMPLES", tmp_path / "no" / "examples.jsonl")
    assert main(["quickstart", "--db", str(tmp_path / "q.db")]) == 2
    error = capsys.readouterr().err
    assert "llm-cost-ops quickstart FILE" in error
    assert str(tmp_path) not in error
    assert not (tmp_path / "q.db").exists()


def test_quickstart_names_a_command_that_can_be_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / ".venv" / "bin" / "llm-cost-ops"
    installed.parent.mkdir(parents=True)
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(installed)])
    for path, command in (("", ".venv/bin/llm-cost-ops"), (str(installed.parent), "llm-cost-ops")):
        monkeypatch.setenv("PATH", path)
        assert main(["quickstart", "--db", "quickstart.db"]) == 0
        assert f"Ask more: {command} costs --db quickstart.db" in capsys.readouterr().out


def test_names_are_text_and_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = str(tmp_path / "costs.db")
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        for model in ("[/x] model", "[red]model[/red]"):
            client.usage.submit(
                organization_id="a", provider="p", model_id=model, input_tokens=1, labels={"[/y]": "[/z]"}
            )
    assert main(["costs", "--db", database, "--group-by", "model,label:[/y]"]) == 0
    shown = capsys.readouterr().out
    for text in ("[/x] model", "[red]model[/red]", "label:[/y]", "[/z]"):
        assert text in shown


def test_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = str(tmp_path / "costs.db")
    with CostOpsClient(base_url=f"sqlite:///{database}") as client:
        client.usage.submit(organization_id="a", provider="openai", model_id="gpt-4o", input_tokens=1)
        client.usage.submit(organization_id="a", provider="nobody", model_id="x", input_tokens=1)
    assert main(["costs", "--db", database, "--group-by", "provider"]) == 0
    printed = capsys.readouterr().out
    assert "openai" in printed
    assert "0.0000025 USD" in printed
    assert "1 request has no price" in printed
    assert main(["costs", "--db", database, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total_cost"] == "0.0000025"
    assert found["unpriced_requests"] == 1
    assert main(["costs", "--db", database, "--group-by", "colour"]) == 2
    assert "--by must be" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["0.0.0.0:80", "example.com:80", "8080", "127.0.0.1:99999", ":80"])
def test_serve_listens_on_loopback_only(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--http", address]) == 2
    assert "http" in (said := capsys.readouterr().err)
    assert address.rpartition(":")[0] in said


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0.00"),
        ("1234567.5", "1,234,567.50"),
        ("0.0000000011", "0.0000000011"),
        ("-0.5", "-0.50"),
        ("-1234", "-1,234.00"),
    ],
)
def test_money(amount: str, text: str) -> None:
    assert money(Decimal(amount)) == text
