"""`llm-cost-ops audit` and `privacy`: who changed what, for people and for scripts."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
import sys
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.cli import main


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with a voided record and a key."""
    path = tmp_path / "costs.db"
    with CostOpsClient(base_url=f"sqlite:///{path}") as client:
        sent = client.usage.submit(
            organization_id="acme", provider="openai", model_id="gpt-4o", input_tokens=9, user_id="ann@x.org"
        )
        client.usage.void(sent.usage_id, organization_id="acme", reason="ann@x.org sent it twice")
    assert main(["keys", "create", "--db", str(path), "--organization", "acme"]) == 0
    return path


def test_the_audit_log_is_listed(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing = ["audit", "list", "--db", str(database)]
    capsys.readouterr()
    assert main([*listing, "--json"]) == 0
    newest, oldest = json.loads(capsys.readouterr().out)
    assert (newest["action"], newest["actor"], newest["number"]) == ("key.created", "local", 2)
    assert (oldest["action"], json.loads(oldest["details"])) == ("usage.voided", {"revision": 2})
    assert main([*listing, "--csv", "--action", "usage.voided", "--start", "1d"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["organization"] for row in rows] == ["acme"]
    assert main([*listing, "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "key.created" in printed
    assert "There are more" in printed
    assert main([*listing, "--actor", "nobody"]) == 0
    assert "Nothing was done" in capsys.readouterr().out
    assert main(["db", "check", str(database)]) == 0
    assert "2 events of its audit log" in capsys.readouterr().out


def test_the_audit_log_is_only_added_to(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for change in ("DELETE FROM audit", "UPDATE audit SET actor = 'x'"):
            with pytest.raises(sqlite3.IntegrityError, match="only added to"):
                connection.execute(change)
        [text] = connection.execute("SELECT group_concat(details || subject || actor) FROM audit").fetchone()
        assert "ann" not in text
        # Whoever takes the trigger away is found out.
        connection.execute("DROP TRIGGER audit_is_not_deleted")
        connection.execute("DELETE FROM audit WHERE seq = 1")
    connection.close()
    capsys.readouterr()
    assert main(["db", "check", str(database)]) == 1
    assert "1 of its 2 events are missing" in capsys.readouterr().out


def test_a_user_is_erased_who_agrees(
    database: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    erase = ["privacy", "erase", "--db", str(database), "--user", "ann@x.org"]
    capsys.readouterr()
    assert main(erase) == 2
    assert "say --yes" in capsys.readouterr().err
    for answer, status in (("n\n", 1), ("", 1), ("y\n", 0)):
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        assert main(erase) == status
        assert "can't be undone" in capsys.readouterr().out
    assert b"ann@x.org" not in database.read_bytes()
    assert main([*erase, "--yes", "--organization", "acme"]) == 1
    assert "0 records named the user" in capsys.readouterr().out
