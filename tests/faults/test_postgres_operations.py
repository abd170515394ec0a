"""What an operator does with a database in PostgreSQL, and what happens to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg
import pytest
from msgspec.structs import replace

from llm_cost_ops import CostOpsClient, CostOpsError
from llm_cost_ops.ledger import Filter, day_spans, open_ledger
from llm_cost_ops.ledger.postgres.errors import connect_error
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.faults.shared_database import Load, check_kept, execute, servers, submit
from tests.pgbouncer import pgbouncer
from tests.ports import free_port
from tests.postgres_server import INITDB, PostgresServer, system_user, why_there_is_none
from tests.tunnels import self_signed
from tests.unit.ledger.making import TAKEN, Sync, entry
from tests.waiting import until

pytestmark = pytest.mark.slow


def wait_until(holds: Callable[[], Any]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def sums(url: str) -> Any:
    """Sums, and how many records there are; those by user are kept from the first time on."""
    with (
        patch.multiple(day_spans, MIN_ROWS=2, MIN_ROWS_A_GROUP=0),
        Sync(ledger=open_ledger(url), timeout=60.0) as ledger,
    ):
        assert ledger.find_faults() == []
        found, count = ledger.summarize(Filter(), ("organization", "model"), None), ledger.count(Filter())
        assert [sums.requests for _, _, sums in ledger.summarize(Filter(), ("user",), None)] == [count]
        kept = ledger.run(lambda session: session.rows("SELECT 1 FROM llm_cost_ops.day_span LIMIT 1"))
        assert kept
        return found, count


def append(url: str, keys: range) -> None:
    with Sync(ledger=open_ledger(url), timeout=60.0) as ledger:
        ledger.append([entry(n, idempotency_key=f"k{n}", units=n) for n in keys])


def name_of(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server that archives its WAL, in the folder `archive` beside its data."""
    server = PostgresServer("archive_mode=on", "wal_level=replica", "fsync=off")
    archive = server.folder / "archive"
    archive.mkdir()
    if system_user() is not None:
        shutil.chown(archive, system_user())
    server.settings.append(f"archive_command=test ! -f {archive}/%f && cp %p {archive}/%f")
    with server:
        yield server


def test_a_restore_has_the_sums_of_the_moment_that_was_asked_for(primary: PostgresServer) -> None:
    url = primary.new_database()
    append(url, range(20))
    with stopped(primary.copy()) as copy:
        append(url, range(20, 40))
        expected = sums(url)
        [(moment,)] = primary.execute("SELECT clock_timestamp()")
        append(url, range(40, 60))
        execute(url, "DELETE FROM llm_cost_ops.usage")
        [(segment,)] = primary.execute("SELECT pg_walfile_name(pg_switch_wal())")
        wait_until((primary.folder / "archive" / segment).exists)
        copy.settings += [
            f"restore_command=cp {primary.folder}/archive/%f %p",
            f"recovery_target_time={moment}",
            "recovery_target_action=promote",
        ]
        (copy.data / "recovery.signal").touch()
        copy.start()
        wait_until(lambda: copy.execute("SELECT NOT pg_is_in_recovery()") == [(True,)])
        restored = copy.url(name_of(url))
        assert sums(restored) == expected
        # It goes on: what it has is known again, and what came later is new.
        append(restored, range(60))
        assert sums(restored)[1] == 60


@contextmanager
def stopped(server: PostgresServer) -> Iterator[PostgresServer]:
    """A server that is stopped and removed in the end, whether it was started or not."""
    try:
        yield server
    finally:
        server.__exit__()


def test_a_standby_takes_no_writes_and_says_so(primary: PostgresServer) -> None:
    url = primary.new_database()
    append(url, range(3))
    expected = sums(url)
    with stopped(primary.standby()) as standby:
        standby.start()
        assert sums(standby.url(name_of(url), target_session_attrs="any")) == expected
        for session in ("read-write", "any"):
            target = standby.url(name_of(url), target_session_attrs=session)
            with Sync(ledger=open_ledger(target)) as ledger:
                for write in (lambda: ledger.append([entry()]), lambda: ledger.set_retention("acme", 9)):
                    with pytest.raises(RpcError) as caught:
                        write()
                    assert (caught.value.code, caught.value.error_code) == (
                        StatusCode.UNAVAILABLE,
                        "STORAGE_READ_ONLY",
                    )
                    assert not caught.value.maybe_applied
        assert sums(url) == expected


@pytest.fixture
def certificate() -> Iterator[tuple[Path, Path]]:
    """A certificate for localhost and its key, which PostgreSQL's user can read, unlike pytest's folders."""
    folder = Path(tempfile.mkdtemp(prefix="llm-cost-ops-tls-"))
    try:
        folder.chmod(0o755)
        certificate, key = self_signed(folder)
        key.chmod(0o600)
        if system_user() is not None:
            shutil.chown(key, system_user())
        yield certificate, key
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["pgbouncer", "server"])
def tls(request: pytest.FixtureRequest, certificate: tuple[Path, Path]) -> Iterator[tuple[str, Path]]:
    """The URL of a database at localhost that speaks TLS only, and the certificate of its authority."""
    cert, key = certificate
    port = free_port()
    with ExitStack() as stack:
        if request.param == "pgbouncer":
            server = request.getfixturevalue("postgres")
            url = server.new_database()
            more = f"client_tls_sslmode = require\nclient_tls_key_file = {key}\n"
            more += f"client_tls_cert_file = {cert}"
            stack.enter_context(pgbouncer(server, port=port, address="127.0.0.1", more=more))
        else:
            # The wheel's server has no TLS.
            if why_there_is_none(15):
                pytest.skip(why_there_is_none(15))
            files = (f"ssl_cert_file={cert}", f"ssl_key_file={key}")
            server = PostgresServer(
                "listen_addresses=127.0.0.1", "ssl=on", *files, "fsync=off", version=15, port=port
            )
            stack.enter_context(server)
            rules = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n"
            (server.data / "pg_hba.conf").write_text(rules)
            server.execute("SELECT pg_reload_conf()")
            url = server.new_database()
        yield f"postgresql://postgres@localhost:{port}/{name_of(url)}?hostaddr=127.0.0.1", cert


def test_tls_is_verified(tls: tuple[str, Path], tmp_path: Path) -> None:
    url, authority = tls
    verified = f"{url}&sslmode=verify-full&sslrootcert={authority}"
    append(verified, range(3))
    assert sums(verified)[1] == 3
    other = tmp_path / "other"
    other.mkdir()
    wrong, _ = self_signed(other)
    for refused in (
        verified.replace(str(authority), str(wrong)),
        verified.replace("@localhost", "@127.0.0.1"),
        f"{url}&sslmode=verify-full&sslrootcert={tmp_path}/none.pem",
        f"{url}&sslmode=disable",
    ):
        with Sync(ledger=open_ledger(refused)) as ledger, pytest.raises(RpcError) as caught:
            ledger.check()
        assert (caught.value.code, caught.value.error_code) == (
            StatusCode.FAILED_PRECONDITION,
            "STORAGE_UNUSABLE",
        ), refused
        assert str(tmp_path) not in caught.value.message
    # By address it is the authority alone that counts.
    append(verified.replace("@localhost", "@127.0.0.1").replace("verify-full", "verify-ca"), range(4))


@pytest.fixture
def small_disk(postgres: Any) -> Iterator[tuple[str, Path]]:
    """The URL of a database on a disk of 24 MB, and the folder that the disk is mounted at."""
    folder = postgres.folder / "disk"
    folder.mkdir()
    mounted = os.getuid() == 0 and shutil.which("mount") is not None
    mounted = mounted and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=777", "tmpfs", str(folder)], stderr=subprocess.DEVNULL
    )
    if not mounted:
        folder.rmdir()
        pytest.skip("only root may mount a small disk, and not in every container")
    try:
        space = folder / "space"
        space.mkdir()
        shutil.chown(space, system_user())
        space.chmod(0o700)
        postgres.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
        url = postgres.new_database()
        postgres.execute(f"ALTER DATABASE {name_of(url)} SET TABLESPACE small")
        yield url, folder
        postgres.drop(url)
        postgres.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def test_a_full_disk_refuses_what_does_not_fit_and_goes_on_with_room(small_disk: tuple[str, Path]) -> None:
    url, folder = small_disk
    filler = folder / "filler"
    with servers(url, 1) as [server], CostOpsClient(base_url=server.url, timeout=60.0) as client:
        submit(client, "before")
        free = os.statvfs(folder)
        filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize - 64 * 1024))
        acknowledged, refused = {"before"}, []
        for number in range(5000):
            try:
                submit(client, f"k{number}")
                acknowledged.add(f"k{number}")
            except CostOpsError as error:
                refused.append((f"k{number}", error))
                if len(refused) == 3:
                    break
        assert len(refused) == 3
        for _, error in refused:
            assert (error.status_code, error.code) == (507, "STORAGE_FULL")
            assert error.retryable
        # Nothing of what was refused is there, and what is there can be read.
        assert client.costs.get(organization_id="acme").total_requests == len(acknowledged)
        check_keys(url, acknowledged)
        filler.unlink()
        for key, _ in refused:
            submit(client, key)
            acknowledged.add(key)
        check_keys(url, acknowledged)


def check_keys(url: str, expected: set[str]) -> None:
    kept = [key for (key,) in execute(url, "SELECT key FROM llm_cost_ops.usage")]
    assert sorted(kept) == sorted(expected)
    with Sync(ledger=open_ledger(url), timeout=60.0) as ledger:
        assert ledger.find_faults() == []


def test_a_storm_of_calls_opens_no_more_connections_than_are_said(postgres: Any, postgres_url: str) -> None:
    bound = 2 * (os.cpu_count() or 1) + 1
    most = 0
    with servers(postgres_url, 1) as [server]:
        with Load([server.url], threads=64, timeout=60.0) as load:
            for _ in range(10):
                load.wait_for(50)
                found = postgres.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'llm-cost-ops' "
                    f"AND datname = '{name_of(postgres_url)}'"
                )
                most = max(most, found[0][0])
        assert load.failed == []
    assert 0 < most <= bound
    check_kept(postgres_url, load)


def test_no_connection_that_is_free_is_waited_for(postgres: Any, postgres_url: str) -> None:
    """As many as the database or the role may have: it is not the URL that is wrong."""
    name = name_of(postgres_url)
    postgres.execute("CREATE ROLE few LOGIN")
    try:
        for what in ("SCHEMA", "ALL TABLES IN SCHEMA", "ALL SEQUENCES IN SCHEMA"):
            postgres.execute(f"GRANT ALL ON {what} llm_cost_ops TO few", name)
        for whose in (f"DATABASE {name}", "ROLE few"):
            postgres.execute(f"ALTER {whose} CONNECTION LIMIT 1")
            url = postgres_url.replace("postgres@", "few@")
            # A session ends some time after its connection.
            until(lambda: not postgres.execute("SELECT 1 FROM pg_stat_activity WHERE usename = 'few'"))
            holder = psycopg.connect(url)
            with Sync(ledger=open_ledger(url), timeout=60.0) as ledger, ThreadPoolExecutor(1) as pool:
                with pytest.raises(RpcError) as caught:
                    Sync(ledger=ledger.store, timeout=0.5).check()
                assert caught.value.code in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)
                appended = pool.submit(ledger.append, [entry(idempotency_key="k")])
                holder.close()
                assert len(appended.result()) == 1
            postgres.execute(f"ALTER {whose} CONNECTION LIMIT -1")
    finally:
        postgres.execute("DROP OWNED BY few", name)
        postgres.execute("DROP ROLE few")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('FATAL:  too many connections for database "costs"', StatusCode.UNAVAILABLE),
        ('FATAL:  too many connections for role "costs"', StatusCode.UNAVAILABLE),
        ("FATAL:  the database system is not yet accepting connections", StatusCode.UNAVAILABLE),
        ("FATAL:  the database system is starting up", StatusCode.UNAVAILABLE),
        ('FATAL:  database "costs" is not currently accepting connections', StatusCode.UNAVAILABLE),
        ("FATAL:  canceling authentication due to timeout", StatusCode.UNAVAILABLE),
        ("SSL SYSCALL error: EOF detected", StatusCode.UNAVAILABLE),
        ("SSL error: unexpected eof while reading", StatusCode.UNAVAILABLE),
        ("SSL connection has been closed unexpectedly", StatusCode.UNAVAILABLE),
        ('FATAL:  database "cost" does not exist', StatusCode.FAILED_PRECONDITION),
        ('FATAL:  role "cost" does not exist', StatusCode.FAILED_PRECONDITION),
        ('FATAL:  role "cost" is not permitted to log in', StatusCode.FAILED_PRECONDITION),
        ("SSL error: certificate verify failed", StatusCode.FAILED_PRECONDITION),
        ("server does not support SSL, but SSL was required", StatusCode.FAILED_PRECONDITION),
    ],
)
def test_what_passes_is_told_from_what_does_not(text: str, code: StatusCode) -> None:
    assert connect_error(psycopg.OperationalError(f"connection failed: {text}")).code is code


def test_clocks_that_differ_change_neither_order_nor_sums(postgres_url: str) -> None:
    """What was committed comes in the order of commits, whatever the servers' clocks said."""
    with Sync(ledger=open_ledger(postgres_url)) as early, Sync(ledger=open_ledger(postgres_url)) as late:
        made = []
        for number in range(10):
            ledger, skew = (late, 1) if number % 2 else (early, -1)
            taken = TAKEN + timedelta(days=skew)
            [done] = ledger.append([replace(entry(idempotency_key=f"k{number}"), ingested_at=taken)])
            made.append(done)
        ids = [done.usage_id for done in made]
        [again] = late.append([replace(entry(idempotency_key="k0"), ingested_at=TAKEN + timedelta(days=9))])
        assert (again.status, again.processed_at) == ("duplicate", made[0].processed_at)
        for ledger in (early, late):
            assert [item.record.id for item in ledger.committed(None, 100)[0]] == ids
            pages, position = ledger.list_usage(Filter(), "ingested_at", False, 4, None, None)
            rest, _ = ledger.list_usage(Filter(), "ingested_at", False, 99, position, None)
            assert [record.id for record in pages + rest] == ids
            assert ledger.count(Filter(start=datetime(2026, 1, 1, tzinfo=UTC))) == 10
        assert early.find_faults() == []


def test_the_room_of_removed_records_is_used_again(postgres: Any, postgres_url: str) -> None:
    """With as many removed each day as come, the table grows by what keeps their keys from being counted."""
    a_day, name = 400, name_of(postgres_url)
    sizes = []
    with Sync(ledger=open_ledger(postgres_url), timeout=60.0) as ledger:
        ledger.set_retention("acme", 3)
        for day in range(11):
            start = TAKEN + timedelta(days=day)
            added = [entry(start, idempotency_key=f"{day}.{n}", user_id=f"user-{n}") for n in range(a_day)]
            ledger.append(added)
            removed = 0
            while number := ledger.remove_older("acme", start - timedelta(days=3), dry_run=False):
                removed += number
            assert removed == (a_day if day > 3 else 0)
            # As autovacuum does, which the server of the tests has not.
            postgres.execute("VACUUM llm_cost_ops.usage", name)
            sizes += postgres.execute("SELECT pg_total_relation_size('llm_cost_ops.usage')", name)[0]
        assert ledger.append(added[:1])[0].status == "duplicate"
        assert ledger.append([entry(TAKEN, idempotency_key="0.0")])[0].status == "duplicate"
        assert ledger.find_faults() == []
    of_one = (sizes[3] - sizes[0]) / 3 / a_day
    of_one_removed = (sizes[10] - sizes[5]) / 5 / a_day
    assert of_one_removed < 0.8 * of_one


def test_an_upgrade_of_postgresql_in_place(postgres: Any) -> None:
    """pg_upgrade takes the numbers of transactions along, which the feed of commits goes by."""
    if why_there_is_none(15):
        pytest.skip(why_there_is_none(15))
    with PostgresServer("fsync=off", version=15) as old:
        url = old.new_database()
        append(url, range(20))
        before = sums(url)
        with Sync(ledger=open_ledger(url)) as ledger:
            committed, position = ledger.committed(None, 100)
        # 15.20 marks the columns of new tables, and 18.6 refuses the mark.
        for database in ("ledger_template", name_of(url)):
            old.execute(
                "UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text ~ 'pg_attver'", database
            )
        old.stop()
        with stopped(PostgresServer("fsync=off", port=old.port + 1)) as new:
            new.run("initdb", "-D", str(new.data), *INITDB, "--no-data-checksums")
            folders = ("-d", str(old.data), "-D", str(new.data), "-b", str(old.bin), "-B", str(new.bin))
            new.run("pg_upgrade", *folders, "-U", "postgres", "--socketdir", str(new.folder))
            new.start()
            upgraded = new.url(name_of(url))
            assert sums(upgraded) == before
            append(upgraded, range(25))
            with Sync(ledger=open_ledger(upgraded)) as ledger:
                found, _ = ledger.committed(None, 100)
                assert found[:20] == committed
                assert len(ledger.committed(position, 100)[0]) == 5
