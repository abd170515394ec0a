"""`llm-cost-ops audit` and `privacy`: who changed what, for people and for scripts."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.cli import main
from tests.conformance.clients import running_server


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


def test_a_retention_is_set_listed_and_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "costs.db"
    place = ["--db", str(path)]
    with CostOpsClient(base_url=f"sqlite:///{path}") as client:
        call = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 9}
        client.usage.submit(timestamp="2020-01-01T00:00:00Z", **call)
        client.usage.submit(**call)
    assert main(["retention", "list", *place]) == 0
    assert "All records are kept." in capsys.readouterr().out
    assert main(["retention", "set", "acme", "--days", "400", "--json", *place]) == 0
    wanted = {"organization": "acme", "days": 400, "removed_before": ""}
    assert json.loads(capsys.readouterr().out) == [wanted]
    assert main(["retention", "apply", "--dry-run", *place]) == 0
    assert "Nothing was removed: --dry-run was given." in capsys.readouterr().out
    assert main(["retention", "apply", "--csv", *place]) == 0
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["organization"], row["records"]) == ("acme", "1")
    assert main(["retention", "apply", *place]) == 0
    assert "Nothing is past its days." in capsys.readouterr().out
    assert main(["usage", "list", *place]) == 0
    assert "were removed by a retention" in capsys.readouterr().out
    assert main(["costs", "--json", *place]) == 0
    assert "18" in capsys.readouterr().out
    assert main(["costs", "--by", "user", *place]) == 2
    assert "--start must be" in capsys.readouterr().err
    assert main(["db", "copy", str(path), str(tmp_path / "copy.db")]) == 2
    assert "removed by a retention" in capsys.readouterr().err
    assert main(["db", "check", str(path)]) == 0
    assert main(["db", "status", str(path)]) == 0
    assert " 1 records of" in capsys.readouterr().out


def test_a_server_removes_what_is_past_its_days(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    with CostOpsClient(base_url=f"sqlite:///{path}") as client:
        call = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 9}
        client.usage.submit(timestamp="2020-01-01T00:00:00Z", **call)
        client.retention.set(organization_id="acme", days=400)
    with (
        running_server(tmp_path, "--http", "127.0.0.1:0") as urls,
        CostOpsClient(base_url=urls["http"]) as client,
    ):
        until = time.monotonic() + 60
        while not client.audit.list(action="retention.applied").data and time.monotonic() < until:
            time.sleep(0.05)
        assert client.usage.get_history().data == []
        assert client.costs.get(organization_id="acme").total_requests == 1
