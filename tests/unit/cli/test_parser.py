"""What the command line says of what it does not know, and where options may stand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with CostOpsClient(base_url="sqlite:///costs.db") as client:
        client.usage.submit(organization_id="acme", provider="openai", model_id="gpt-4o", input_tokens=5)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "estimate openai gpt-4o --input 5",
        "estimate openai --input 5 gpt-4o",
        "estimate --input 5 openai gpt-4o",
        "estimate --input 5 openai/gpt-4o",
        "prices show openai --json gpt-4o",
        "prices list gpt-4o --provider openai mini",
        "prices add openai --input 5 --db costs.db gpt-4o",
    ],
)
def test_options_may_stand_between_words(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 0
    assert "gpt-4o" in capsys.readouterr().out


def test_behind_two_hyphens_are_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--input", "5", "--", "openai", "gpt-4o"]) == 0
    capsys.readouterr()
    assert main(["prices", "list", "--", "--json"]) == 1
    assert "No model of the catalog has such a name" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("cost", ": did you mean costs?"),
        ("usage lst", ": did you mean list?"),
        ("xyzzy", ""),
        ("costs --since today", "llm-cost-ops costs: error: unrecognized arguments: --since today"),
        ("keys list extra", "llm-cost-ops keys list: error: unrecognized arguments: extra"),
        ("estimate --input 5", "the following arguments are required: model"),
    ],
)
def test_what_is_not_known_is_told_with_what_is(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    error = capsys.readouterr().err
    assert error.rstrip().endswith(said)
    assert ("did you mean" in error) == ("did you mean" in said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("costs --by users", "--by must be one of none, "),
        ("costs --status dear", "--status must be one of priced, "),
        ("usage show abc", "--organization must be given: "),
        ("usage show abc --organization acme", "there is no usage record 'abc' of 'acme'"),
        ("estimate openai gpt-4o --input -3", "--input must be 0 or more, not -3"),
    ],
)
def test_without_a_server_the_rule_is_told_and_no_request(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    database = [] if words.startswith("estimate") else ["--db", "costs.db"]
    assert main([*words.split(), *database]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"llm-cost-ops: {said}")
    assert "request 0" not in error
    assert "INVALID_ARGUMENT" not in error


@pytest.mark.parametrize("action", [["create", "--organization", "acme"], ["list"], ["revoke", "abc"]])
def test_keys_are_not_kept_in_memory(
    action: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sqlite://", "sqlite:///:memory:", "sqlite://?durability=process"):
        monkeypatch.setenv("LLM_COST_OPS_BASE_URL", name)
        assert main(["keys", *action]) == 2
        told = capsys.readouterr()
        assert "a database in memory keeps no key: name another by --db" in told.err
        assert not told.out


@pytest.mark.parametrize("where", [["--base-url", "sqlite:///costs.db"], ["--db", "costs.db"], []])
def test_what_is_wrong_with_a_proxy_is_told_wherever_it_records(
    where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["proxy", "--check", "--upstream", "openai=ftp://x", *where]) == 2
    assert capsys.readouterr().err.startswith(
        "llm-cost-ops: upstream openai: the URL must begin with http://"
    )


def test_the_name_of_a_file_need_not_be_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"\xff 1.db")
    (folder / "costs.db").rename(folder / name)
    assert main(["keys", "create", "--organization", "acme", "--db", "a b.db"]) == 0
    assert "--db 'a b.db'" in capsys.readouterr().err, "what it says can be run"
    (folder / "a b.db").unlink()
    for command in (["costs"], ["keys", "list"], ["serve", "--check"]):
        assert main([*command, "--db", name]) == 0
        for url in ("sqlite:///%FF%201.db", f"sqlite:///{name}".replace(" ", "%20")):
            monkeypatch.setenv("LLM_COST_OPS_BASE_URL", url)
            assert main(command) == 0
    assert "1 request" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == [name]


def test_commands_over_a_database_take_that_of_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "list"]) == 2
    assert "there is no database llm_cost_ops.db: name one by --db" in capsys.readouterr().err
    monkeypatch.setenv("LLM_COST_OPS_BASE_URL", "sqlite:///costs.db")
    assert main(["keys", "create", "--organization", "acme"]) == 0
    assert "--db costs.db" in capsys.readouterr().err
    for command in (["keys", "list"], ["keys", "list", "--db", "sqlite:///costs.db"]):
        assert main(command) == 0
        assert "acme" in capsys.readouterr().out
    assert main(["serve", "--check"]) == 0
    assert "the settings and costs.db are good" in capsys.readouterr().out
    assert not (folder / "llm_cost_ops.db").exists()
    monkeypatch.setenv("LLM_COST_OPS_BASE_URL", "https://costs.example.com")
    assert main(["keys", "create", "--organization", "acme"]) == 2
    assert "names a server: name its database by --db" in capsys.readouterr().err
    assert main(["serve", "--check", "--db", "sqlite:///costs.db"]) == 0
    assert "the settings and costs.db are good" in capsys.readouterr().out
    assert main(["serve", "--check"]) == 0, "clients of a server may be where it is"
    assert "the settings and llm_cost_ops.db are good" in capsys.readouterr().out


def test_costs_of_nothing_say_that_nothing_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["costs", "--db", "costs.db", "--organization", "acmee"]) == 0
    assert "Nothing is recorded that these filters let through." in capsys.readouterr().out
