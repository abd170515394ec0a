"""`llm-cost-ops keys`: what it prints where, and how `serve` takes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm_cost_ops.cli import main


def make(database: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["keys", "create", "--db", str(database), "--organization", "acme", *arguments]) == 0
    printed = capsys.readouterr()
    [key] = printed.out.split()
    assert key not in printed.err
    assert f"keys revoke {key[4:12]}" in printed.err
    return key


def test_a_key_is_shown_once_and_revoked_by_its_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    database = tmp_path / "keys.db"
    first = make(database, capsys, "--name", "the page", "--role", "reader")
    second = make(database, capsys, "--organization", "globex", "--expires", "2999-12-31")
    assert re.fullmatch(r"lco_[a-z2-7]{8}_[a-z2-7]{52}", first)
    assert main(["keys", "list", "--db", str(database)]) == 0
    listed = capsys.readouterr().out
    assert re.search(rf"{first[4:12]}\s+the page\s+reader\s+acme\s+\S+ \S+\s+in force", listed)
    assert re.search(rf"{second[4:12]}\s+writer\s+acme, globex\s+\S+ \S+\s+until 3000-01-01", listed)
    assert first[13:] not in listed
    assert second[13:] not in listed
    assert main(["keys", "revoke", first[4:12], "--db", str(database)]) == 0
    assert "running servers refuse it from now on" in capsys.readouterr().out
    assert main(["keys", "list", "--db", str(database)]) == 0
    assert re.search(rf"{first[4:12]}\s.*revoked ", capsys.readouterr().out)


def test_names_are_text_and_no_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    database = tmp_path / "keys.db"
    make(database, capsys, "--name", "[/red]", "--organization", "[/x]")
    assert main(["keys", "list", "--db", str(database)]) == 0
    assert re.search(r" \[/red\]\s+writer\s+\[/x\], acme ", capsys.readouterr().out)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "keys.db"
    assert main(["keys", "list", "--db", str(database)]) == 2
    assert "there is no database" in capsys.readouterr().err
    assert not database.exists()
    key = make(database, capsys)
    for arguments, said in (
        (["revoke", "aaaaaaaa"], "there is no API key 'aaaaaaaa'"),
        (["revoke", f"{key}x".replace(key[4:12], "bbbbbbbb")], "there is no API key 'bbbbbbbb'"),
        (["create"], "--organization must be given"),
        (["create", "--organization", ""], "organization must have 1 to 100"),
        (["create", "--organization", "a", "--expires", "tomorrow"], "expires"),
        (["create", "--organization", "a", "--expires", "2020-01-01"], "expires must lie in the future"),
    ):
        assert main(["keys", *arguments, "--db", str(database)]) == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert key[13:] not in printed.err + printed.out
    for arguments in (["create", "--organization", "a", "--role", "root"], []):
        with pytest.raises(SystemExit):
            main(["keys", *arguments])


def test_a_database_that_never_had_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "keys.db"
    database.touch()
    assert main(["keys", "list", "--db", str(database)]) == 0
    assert "holds no API key" in capsys.readouterr().out


def test_the_network_is_refused_without_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "none.db"
    for option in ("--http", "--grpc"):
        assert main(["serve", option, "0.0.0.0:0", "--db", str(database)]) == 2
        assert "llm-cost-ops keys create" in capsys.readouterr().err
    assert not database.exists()
    with pytest.raises(SystemExit):
        main(["serve", "--max-calls", "0"])


def test_help_says_who_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in ("--require-keys", "--max-calls", "loopback only", "health needs none"):
        assert words in said
