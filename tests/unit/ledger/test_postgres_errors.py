"""What a ledger in PostgreSQL says where it can't work, and that no password is shown."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
from psycopg.pq import DiagnosticField

from llm_cost_ops import CostOpsClient, CostOpsError
from llm_cost_ops.cli import main
from llm_cost_ops.config import ClientConfig, without_password
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.ledger import open_ledger
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.errors import connect_error, is_lost, rpc_error
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.server.running import _opened as opened
from tests.unit.ledger.making import Sync, entry
from tests.waiting import MAX_WAIT, until

SECRET = "p4ss-w0rd"


def refusal(url: str, *, timeout: float = 1000.0, **options: Any) -> RpcError:
    with Sync(ledger=open_ledger(url, **options), timeout=timeout) as ledger:
        with pytest.raises(RpcError) as caught:
            ledger.check()
        with pytest.raises(RpcError) as again:
            ledger.append([entry()])
    assert caught.value.code == again.value.code
    assert SECRET not in str(caught.value) + caught.value.local_detail
    return caught.value


def test_a_host_that_is_not_there_can_be_tried_again() -> None:
    began = time.monotonic()
    error = refusal(f"postgresql://me:{SECRET}@127.0.0.1:1/costs")
    assert (error.code, error.retry_after) == (StatusCode.UNAVAILABLE, 0.5)
    assert "can't be reached" in error.message
    assert "Connection refused" in error.local_detail
    assert "\n" not in error.local_detail
    assert time.monotonic() - began < MAX_WAIT


def test_what_the_url_says_wrongly_is_not_tried_again(postgres: Any) -> None:
    began = time.monotonic()
    for url in (
        postgres.url("no_such_database"),
        postgres.url("postgres").replace("postgres@", f"nobody_here:{SECRET}@"),
        postgres.url("postgres", sslmode="verify-full", sslrootcert="/nowhere.pem").replace(
            f"host={postgres.folder}", "host=127.0.0.1"
        ),
    ):
        error = refusal(url)
        if "127.0.0.1" not in url:
            assert (error.code, error.error_code) == (StatusCode.FAILED_PRECONDITION, "STORAGE_UNUSABLE")
    assert time.monotonic() - began < MAX_WAIT


def test_a_wrong_password_is_refused(postgres: Any) -> None:
    postgres.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
    rules = (postgres.data / "pg_hba.conf").read_text()
    (postgres.data / "pg_hba.conf").write_text(f"local all locked scram-sha-256\n{rules}")
    before = postgres.execute("SELECT pg_conf_load_time()")
    postgres.execute("SELECT pg_reload_conf()")
    try:
        # Each asks a connection that the server makes as it is configured then.
        until(lambda: postgres.execute("SELECT pg_conf_load_time()") != before)
        url = postgres.url("postgres").replace("postgres@", f"locked:{SECRET}@")
        error = refusal(url)
        assert error.code is StatusCode.FAILED_PRECONDITION
        assert "does not let this user in" in error.message
    finally:
        (postgres.data / "pg_hba.conf").write_text(rules)
        postgres.execute("SELECT pg_reload_conf()")
        postgres.execute("DROP ROLE locked")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'FATAL:  pg_hba.conf rejects connection for host "10.0.0.1", user "me", database "costs"',
            "does not let this user in",
        ),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "me"', "does not let this user in"),
        ('FATAL:  permission denied for database "costs"', "may not be used"),
        ('FATAL:  role "me" is not permitted to log in', "may not be used"),
        ("failed to resolve host 'h': Servname not supported for ai_socktype", "does not say where"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    error = connect_error(psycopg.OperationalError(f"connection failed: {text}"))
    assert error.code is StatusCode.FAILED_PRECONDITION
    assert message in error.message


def test_a_resolver_that_is_not_there_for_now_is_asked_again() -> None:
    text = "failed to resolve host 'db.authentication.svc': [Errno -3] Temporary failure in name resolution"
    assert connect_error(psycopg.OperationalError(text)).code is StatusCode.UNAVAILABLE


@pytest.mark.parametrize("state", ["08006", "25P03", "25P04", "57P01", "57P02", "57P05"])
def test_a_connection_that_the_server_ends_is_lost(state: str) -> None:
    error = psycopg.errors.lookup(state)()
    assert is_lost(error)
    assert rpc_error(error).code is StatusCode.UNAVAILABLE


@pytest.mark.parametrize("state", ["58030", "53100", "XX000"])
def test_a_server_that_can_not_write_its_wal_may_have_committed(state: str) -> None:
    """It ends by PANIC, and finds the commit when it starts again."""
    for severity, lost in ((b"PANIC", True), (b"FATAL", True), (b"ERROR", False)):
        info: Any = dict.fromkeys(DiagnosticField)
        error = psycopg.errors.lookup(state)(info={**info, DiagnosticField.SEVERITY_NONLOCALIZED: severity})
        assert is_lost(error) == lost


def test_a_server_that_goes_down_behind_a_commit_is_no_standby_that_is_away() -> None:
    for state, confirmed in (("57P02", True), ("57P01", True), ("01000", False)):
        session = Session(Mock(), "on")
        with nullcontext() if confirmed else pytest.raises(RpcError, match="not confirmed by a standby"):
            session._expect_commit()
            session._notice(Mock(severity_nonlocalized="WARNING", sqlstate=state))
            session.end_commit()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_can_not_hold_every_text_is_refused(postgres: Any, encoding: str) -> None:
    name = f"in_{encoding.lower()}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    error = refusal(postgres.url(name))
    assert (error.code, error.error_code) == (StatusCode.FAILED_PRECONDITION, "STORAGE_UNUSABLE")
    assert f"is {encoding}, and the ledger needs UTF8" in error.message
    postgres.drop(postgres.url(name))


def test_anothers_schema_and_a_newer_one_are_left_alone(postgres: Any) -> None:
    for statements, rule in (
        (("CREATE SCHEMA llm_cost_ops", "CREATE TABLE llm_cost_ops.theirs (id int)"), "another application"),
        (("CREATE SCHEMA llm_cost_ops", "CREATE TABLE llm_cost_ops.meta (id int)"), "another application"),
        (
            ("CREATE SCHEMA llm_cost_ops", "CREATE TABLE llm_cost_ops.meta (version text)"),
            "another application",
        ),
        (("CREATE SCHEMA llm_cost_ops", "CREATE TABLE llm_cost_ops.meta (version int)"), "is not a ledger's"),
        (
            (
                "CREATE SCHEMA llm_cost_ops",
                "CREATE TABLE llm_cost_ops.meta (id int, version int)",
                "INSERT INTO llm_cost_ops.meta VALUES (1, 99)",
            ),
            "newer llm-cost-ops",
        ),
    ):
        url = postgres.new_database(empty=True)
        name = url.partition("?")[0].rpartition("/")[2]
        for statement in statements:
            postgres.execute(statement, name)
        error = refusal(url)
        assert (error.code, error.error_code) == (StatusCode.FAILED_PRECONDITION, "STORAGE_UNUSABLE")
        assert rule in error.message
        postgres.drop(url)


def test_a_user_without_the_right_to_make_tables(postgres: Any) -> None:
    url = postgres.new_database(empty=True)
    name = url.partition("?")[0].rpartition("/")[2]
    postgres.execute("CREATE ROLE serving LOGIN")
    try:
        serving = url.replace("postgres@", "serving@")
        error = refusal(serving)
        assert (error.code, error.error_code) == (StatusCode.FAILED_PRECONDITION, "STORAGE_UNUSABLE")
        assert "llm-cost-ops db init" in error.message
        with Sync(ledger=open_ledger(url)) as owner:
            owner.check()
        for grant in (
            "USAGE ON SCHEMA llm_cost_ops TO serving",
            "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA llm_cost_ops TO serving",
            "USAGE ON ALL SEQUENCES IN SCHEMA llm_cost_ops TO serving",
        ):
            postgres.execute(f"GRANT {grant}", name)
        with Sync(ledger=open_ledger(serving)) as ledger:
            ledger.append([entry()])
    finally:
        postgres.drop(url)
        postgres.execute("DROP ROLE serving")


def test_a_server_that_may_only_read_does_not_start_and_names_the_right(
    postgres: Any, postgres_url: str
) -> None:
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    postgres.execute("CREATE ROLE reading LOGIN")
    try:
        for grant in ("USAGE ON SCHEMA llm_cost_ops", "SELECT ON ALL TABLES IN SCHEMA llm_cost_ops"):
            postgres.execute(f"GRANT {grant} TO reading", name)
        with pytest.raises(ConfigurationError, match=r"db init.*permission denied for table meta"):
            asyncio.run(opened(postgres_url.replace("postgres@", "reading@"), "disk"))
    finally:
        postgres.execute("DROP OWNED BY reading", name)
        postgres.execute("DROP ROLE reading")


def test_a_database_that_takes_no_writes(postgres: Any, postgres_url: str) -> None:
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    error = refusal(postgres_url)
    assert (error.code, error.error_code) == (StatusCode.UNAVAILABLE, "STORAGE_READ_ONLY")


def test_an_older_server_is_named(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psycopg.ConnectionInfo, "server_version", 140012)
    assert "PostgreSQL 14, and the ledger needs 15" in refusal(postgres_url).message


def test_replicated_needs_a_standby(postgres_url: str) -> None:
    error = refusal(postgres_url, durability="replicated")
    assert error.code is StatusCode.FAILED_PRECONDITION
    assert "synchronous standby" in error.message


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("postgresql://h/d?colour=red", 'invalid URI query parameter: "colour"'),
        (f"postgresql://u:{SECRET}@[::1/d", "base_url"),
        ("postgresql://h/d?durability=paper", "durability must be"),
        (f"postgresql://u:a@{SECRET}@h/d", "percent-encoded"),
        (f"postgresql://u:a/{SECRET}@h/d", "percent-encoded"),
        (f"postgresql://u:a?{SECRET}@h/d", "percent-encoded"),
        (f"postgresql://u:a#{SECRET}@h/d", "base_url"),
        (f"postgresql:/u:{SECRET}@h/d", "base_url"),
    ],
)
def test_urls_that_are_refused_before_anything_is_connected(url: str, rule: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CostOpsClient(base_url=url).close()
    assert rule in str(caught.value)
    assert SECRET not in str(caught.value)


def test_no_password_is_shown(
    postgres: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.new_database()
    name = url.partition("?")[0].rpartition("/")[2]
    url = f"postgresql://postgres:{SECRET}@/{name}?host={postgres.folder}&port={postgres.port}"
    caplog.set_level(logging.DEBUG)
    config = ClientConfig(base_url=url)
    ledger = open_ledger(url)
    with CostOpsClient(config=config) as client:
        client.usage.submit(organization_id="a", provider="openai", model_id="gpt-4o", input_tokens=1)
        shown = repr(config) + repr(client) + repr(ledger)
    with pytest.raises(TypeError, match="password"):
        pickle.dumps(config)
    assert main(["keys", "list", "--db", url]) == 0
    assert main(["keys", "create", "--db", url, "--organization", "a"]) == 0
    bad = url.replace(name, "no_such_database")
    assert main(["keys", "list", "--db", bad]) == 2
    with CostOpsClient(base_url=bad) as client, pytest.raises(CostOpsError) as caught:
        client.costs.get()
    printed = capsys.readouterr()
    for text in (shown, str(caught.value), repr(caught.value), printed.out, printed.err, caplog.text):
        assert SECRET not in text
    assert "postgres:***@" in shown
    postgres.drop(url)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
@pytest.mark.parametrize(
    "command",
    [
        ["proxy", "--upstream", "openai=http://127.0.0.1:9", "--http", "127.0.0.1:0", "--db"],
        ["costs", "--db"],
        ["import", "calls.jsonl", "--db"],
        ["quickstart", "calls.jsonl", "--db"],
        ["serve", "--http", "127.0.0.1:0", "--db"],
        ["dashboard", "--no-browser", "--db"],
        ["keys", "list", "--db"],
        ["keys", "revoke", "abcdefgh", "--db"],
        ["db", "status"],
        ["db", "check"],
        ["db", "migrate"],
    ],
)
def test_no_command_shows_the_password_of_its_database(
    command: list[str],
    scheme: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("calls.jsonl").write_text(
        '{"provider":"openai","model_id":"gpt-4o","input_tokens":1}\n', encoding="utf-8"
    )
    assert main([*command, f"{scheme}://u:{SECRET}@127.0.0.1:1/d?nope=1"]) == 2
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert printed.err.startswith("llm-cost-ops: ")


def test_the_proxy_shows_no_password_of_a_database_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["proxy", "--upstream", "openai=http://127.0.0.1:9", "--http", "127.0.0.1:0", "--db"]
    assert main([*command, f"postgresql://u:{SECRET}@127.0.0.1:1/d"]) == 2
    assert "postgresql://u:***@127.0.0.1:1/d" in (error := capsys.readouterr().err)
    assert SECRET not in error


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:p:q@h1,h2:6/d", "postgresql://u:***@h1,h2:6/d"),
        ("postgresql://u@h/d?password=p&sslmode=require", "postgresql://u@h/d?password=***&sslmode=require"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("postgresql://u:a/b?c#d@e@h/d", "postgresql://u:***@h/d"),
        ("postgresql:/u:p@h/d", "postgresql:/u:***@h/d"),
        ("postgresql:u:p@h/d", "postgresql:u:***@h/d"),
        ("postgresql://h/d?passWord=p&pass%77ord=q&a=b", "postgresql://h/d?passWord=***&pass%77ord=***&a=b"),
        ("mysql://u:p@h/d", "mysql://u:***@h/d"),
        ("http://h:8080/a@b", "http://h:8080/a@b"),
        ("sqlite:///a:b@c.db", "sqlite:///a:b@c.db"),
    ],
)
def test_urls_as_they_are_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
