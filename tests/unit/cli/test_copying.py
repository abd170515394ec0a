"""`llm-cost-ops db copy`: a ledger in another database to the last row, also when it was stopped midway."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from llm_cost_ops._gen.messages import CostStatus, UsageQuality
from llm_cost_ops.cli import main
from llm_cost_ops.ledger import Filter, open_ledger
from llm_cost_ops.ledger.sqlite import transfer
from llm_cost_ops.ledger.types import AuditFilter
from llm_cost_ops.pricing.cards import card_digest
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.service.access.keys import principal_of
from tests.ledger_suite import card, priced, revise
from tests.unit.ledger.making import Sync, context, entry

LABELS = {"b": "é", "a": "1"}
VOIDED = Filter(statuses=("voided",))
COPY = [sys.executable, "-m", "llm_cost_ops.cli", "db", "copy"]


def fill(ledger: Sync) -> None:
    kept = card(id="card-2")
    by = Pricing(CostStatus.PRICED, "USD", "card-2", 1, card=kept, digest=card_digest(kept))
    batch = [
        entry(n, idempotency_key=f"k{n}", user_id="u", tags=["x"], labels=LABELS, units=n) for n in range(30)
    ]
    done = ledger.append([replace(batch[0], by=by), *batch[1:], entry(99, organization_id="globex")])
    unknown = entry(idempotency_key="o", observation=True, quality=UsageQuality.UNKNOWN, units=None)
    ledger.append([unknown, entry(idempotency_key="o", input_tokens=9)])
    ledger.append([entry(-1e9, idempotency_key="01a20359-ab54-7000-bc5b-ba4c242805a1", units=None), entry()])
    ledger.reprice(Filter(), lambda _: priced(7), None, 10, dry_run=False)
    assert revise(ledger, done[1].usage_id, 2, replace(batch[1].record, input_tokens=8, user_id="v"))
    assert revise(ledger, done[2].usage_id, 2)
    ledger.add_card(card(region="eu"), "key", b"1" * 16)


def facts(ledger: Sync) -> Any:
    """All that a copy keeps."""
    found: list[Any] = []
    for where in (Filter(), VOIDED):
        records, _ = ledger.list_usage(where, "timestamp", False, 1000, None, None)
        for record in records:
            found.append(ledger.get_cost(record.id, record.organization_id))
            found += ledger.revisions(record.organization_id, record.id)
    sums = [ledger.summarize(Filter(), group_by, None) for group_by in ((), ("tag", "user"), ("label:a",))]
    audit, _ = ledger.audit_events(AuditFilter(), 1000, None, None)
    keys = drive(ledger.store.keys.all(context()))
    return found, sums, ledger.all_cards(), keys, audit, ledger.retentions()


@pytest.fixture(params=["sqlite-postgres", "postgres-sqlite", "sqlite-sqlite", "postgres-postgres"])
def both(request: pytest.FixtureRequest, postgres: Any, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The URLs of a source and a target, both new."""
    made = []
    urls = []
    for number, kind in enumerate(request.param.split("-")):
        if kind == "postgres":
            made.append(postgres.new_database())
        urls.append(made[-1] if kind == "postgres" else f"sqlite:///{tmp_path}/{number}.db")
    yield urls[0], urls[1]
    for url in made:
        postgres.drop(url)


def check(url: str) -> None:
    path = url.removeprefix("sqlite:///")
    assert main(["db", "check", path]) == 0


def test_a_copy_has_what_the_source_has(both: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    source, target = both
    with Sync(ledger=open_ledger(source)) as ledger:
        fill(ledger)
    assert main(["keys", "create", "--db", source, "--organization", "acme", "--name", "kept"]) == 0
    text = capsys.readouterr().out.strip()
    with Sync(ledger=open_ledger(source)) as ledger:
        ledger.set_retention("acme", 4000)
        expected = facts(ledger)
    assert main(["db", "copy", source, target]) == 0
    assert "34 records and 12 revisions copied; 0 records were there" in capsys.readouterr().out
    with Sync(ledger=open_ledger(target)) as ledger:
        assert facts(ledger) == expected
        assert [item.revision for item in ledger.committed(None, 1000)[0]].count(1) == 34
        # What is sent again is known, with its first answer.
        [again] = ledger.append([entry(5, idempotency_key="k5", user_id="u", tags=["x"], labels=LABELS)])
        assert (again.status, again.units) == ("duplicate", 5)
        assert ledger.add_card(card(region="eu"), "key", b"1" * 16)[1] == "duplicate"
        # A key that was made for the source lets its owner in.
        assert drive(principal_of(ledger.store.keys, text, context())) is not None
    check(target)
    # Once more: nothing is copied twice, and what has changed since follows.
    with Sync(ledger=open_ledger(source)) as ledger:
        [new] = ledger.append([entry(7, idempotency_key="new")])
        assert revise(ledger, new.usage_id, 1)
        [found], _ = ledger.list_usage(
            Filter(organization_ids=("globex",)), "timestamp", False, 9, None, None
        )
        changed = entry(99, organization_id="globex", input_tokens=1).record
        assert revise(ledger, found.id, 1, changed, organization_id="globex")
    assert main(["keys", "revoke", text, "--db", source]) == 0
    capsys.readouterr()
    assert main(["db", "copy", source, target]) == 0
    assert "1 records and 2 revisions copied; 34 records were there" in capsys.readouterr().out
    with Sync(ledger=open_ledger(source)) as one, Sync(ledger=open_ledger(target)) as other:
        assert facts(other) == facts(one)
        assert drive(principal_of(other.store.keys, text, context())) is None
    check(target)


# To make a failure smaller takes minutes with a database for each try.
@settings(
    max_examples=6,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_there_and_back_nothing_is_another(data: st.DataObject, postgres: Any, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("copies")
    first, last, between = f"{folder}/1.db", f"{folder}/2.db", postgres.new_database()
    names = st.sampled_from(["acme", "globex", "é"])
    with Sync(first) as ledger:
        for step in range(data.draw(st.integers(1, 12))):
            key = data.draw(st.sampled_from(["", f"k{step}", "same"]))
            made = entry(
                data.draw(st.integers(-(10**6), 10**6)) * 900,
                organization_id=data.draw(names),
                idempotency_key=key,
                user_id=data.draw(st.sampled_from(["", "u", "v"])),
                input_tokens=data.draw(st.integers(0, 10**9)),
                units=data.draw(st.none() | st.integers(-(10**15), 10**15)),
            )
            [done] = ledger.append([made])
            for after in range(1, data.draw(st.integers(1, 4))):
                changed = data.draw(st.none() | st.just(replace(made.record, input_tokens=after)))
                revise(ledger, done.usage_id, after, changed, organization_id=made.record.organization_id)
            if data.draw(st.booleans()):
                ledger.reprice(Filter(), lambda _, n=step: priced(n), None, 5, dry_run=False)
        expected = facts(ledger)
    assert main(["db", "copy", first, between]) == 0
    assert main(["db", "copy", between, last]) == 0
    with Sync(last) as ledger:
        assert facts(ledger) == expected
    check(between)
    check(last)
    postgres.drop(between)


def test_a_copy_into_postgresql_that_was_killed_goes_on(
    postgres: Any, postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "costs.db")
    with Sync(file, durability="process") as ledger:
        for first in range(0, 3000, 500):
            ledger.append([entry(n, idempotency_key=f"k{n}") for n in range(first, first + 500)])
        expected = facts(ledger)
        [held], _ = ledger.list_usage(Filter(), "timestamp", False, 1, None, 2500)
    # Somebody else is about to write a record of the third page: the copy waits for them there.
    with psycopg.connect(postgres_url) as holder:
        columns = "series, pricing, ingested, ts, requests, input, output, cached, record, seq"
        holder.execute("INSERT INTO llm_cost_ops.organization (name) VALUES ('acme')")
        holder.commit()
        holder.execute(
            f"INSERT INTO llm_cost_ops.usage (org, id, {columns}) "
            "SELECT id, %s, 0, 0, 0, 0, 0, 0, 0, 0, '', 0 FROM llm_cost_ops.organization",
            [held.id],
        )
        process = subprocess.Popen([*COPY, file, postgres_url])
        until = time.monotonic() + 60
        while not postgres.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.kill()
        process.wait()
        holder.rollback()
    assert main(["db", "copy", file, postgres_url]) == 0
    assert "1,000 records and 0 revisions copied; 2,000 records were there" in capsys.readouterr().out
    with Sync(ledger=open_ledger(postgres_url)) as ledger:
        assert facts(ledger)[1:] == expected[1:]
    check(postgres_url)


def test_keys_that_come_by_a_copy_let_into_a_server_that_runs(
    both: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = both
    assert main(["keys", "create", "--db", source, "--organization", "acme"]) == 0
    text = capsys.readouterr().out.strip()
    served = open_ledger(target)
    keys = served.keys
    # As the dashboard does for its forms, before there is a key.
    own = drive(keys.secret(context()))
    assert drive(keys.secret(context())) == own
    assert main(["db", "copy", source, target]) == 0
    assert drive(principal_of(keys, text, context())) is not None
    assert drive(keys.secret(context())) != own
    drive(served.aclose())


def test_a_copy_into_sqlite_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = str(tmp_path / "1.db"), str(tmp_path / "2.db")
    with Sync(source) as ledger:
        fill(ledger)
        expected = facts(ledger)
    monkeypatch.setattr("llm_cost_ops.cli.copying._PAGE", 7)
    fold, calls = transfer.fold, 0

    def stopping(cursor: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        fold(cursor)

    monkeypatch.setattr(transfer, "fold", stopping)
    assert main(["db", "copy", source, target]) == 130
    # The third page is not there, not even in parts.
    with Sync(target) as ledger:
        assert ledger.count(Filter(statuses=tuple(CostStatus))) == 14
    check(target)
    assert main(["db", "copy", source, target]) == 0
    with Sync(target) as ledger:
        assert facts(ledger) == expected
    check(target)


def test_a_copy_needs_no_rich(tmp_path: Path) -> None:
    """It only has no bar then, as `import` has none."""
    with Sync(str(tmp_path / "1.db")) as ledger:
        ledger.append([entry()])
    code = "import sys; sys.modules['rich'] = None; from llm_cost_ops.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "db", "copy", str(tmp_path / "1.db"), str(tmp_path / "2.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 records and 0 revisions copied" in done.stdout


def test_what_a_target_has_of_its_own_is_left_alone(
    both: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = both
    for url in both:
        assert main(["keys", "create", "--db", url, "--organization", "acme"]) == 0
        with Sync(ledger=open_ledger(url)) as ledger:
            ledger.append([entry(idempotency_key=f"of {url}")])
            if url == target:
                before = facts(ledger)
    assert main(["db", "copy", source, target]) == 1
    said = capsys.readouterr().err
    assert "the API keys were not copied" in said
    assert "the target had records of its own" in said
    with Sync(ledger=open_ledger(target)) as ledger:
        assert facts(ledger)[3] == before[3]
        assert ledger.count(Filter()) == 2
        # The same key for something else, or a card under a version that is taken: nothing is written.
        ledger.append([entry(idempotency_key="k", input_tokens=1)])
    with Sync(ledger=open_ledger(source)) as ledger:
        ledger.append([entry(idempotency_key="k", input_tokens=2), entry(idempotency_key="l")])
    assert main(["db", "copy", source, target]) == 2
    assert "another record in place of" in capsys.readouterr().err
    for url, price in ((source, "2"), (target, "3")):
        with Sync(ledger=open_ledger(url)) as ledger:
            ledger.add_card(card(price), "", b"1" * 16)
    assert main(["db", "copy", source, target]) == 2
    assert "price cards of its own" in capsys.readouterr().err
    with Sync(ledger=open_ledger(target)) as ledger:
        assert ledger.count(Filter()) == 3
    check(target)


def test_a_user_who_was_erased_does_not_come_back(
    both: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = both
    sent = entry(idempotency_key="k", user_id="jo", tags=["jo", "x"])
    with Sync(ledger=open_ledger(source)) as ledger:
        ledger.append([sent, entry(1, idempotency_key="l", user_id="al")])
        ledger.append([entry(2, idempotency_key="m", user_id="jo")])
    assert main(["privacy", "erase", "--user", "jo", "--organization", "acme", "--yes", "--db", source]) == 0
    assert main(["db", "copy", source, target]) == 0
    with Sync(ledger=open_ledger(source)) as one, Sync(ledger=open_ledger(target)) as other:
        assert facts(other) == facts(one)
        assert "jo" not in repr(facts(other))
        # As in the source: what is sent again is known, and says nothing of them.
        assert other.append([sent])[0].status == "duplicate"
    check(target)
    # Erased from the source only, after a copy: it is said, and followed once they are erased from both.
    assert main(["privacy", "erase", "--user", "al", "--organization", "acme", "--yes", "--db", source]) == 0
    capsys.readouterr()
    assert main(["db", "copy", source, target]) == 2
    assert "a user was erased" in capsys.readouterr().err
    assert main(["privacy", "erase", "--user", "al", "--organization", "acme", "--yes", "--db", target]) == 0
    assert main(["db", "copy", source, target]) == 0
    check(target)


def test_what_is_not_a_source(postgres: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, target = postgres.new_database(empty=True), str(tmp_path / "costs.db")
    for source, rule in (
        (str(tmp_path / "none.db"), "there is no database"),
        ("sqlite://", "in memory"),
        (empty, "holds no ledger"),
    ):
        assert main(["db", "copy", source, target]) == 2
        assert rule in capsys.readouterr().err
    assert not Path(target).exists()
    postgres.drop(empty)


# What a copy makes anew, or what belongs to one database alone.
NOT_COPIED = {
    "meta": "the version of the tables",
    "health": "a mark of readiness",
    "rollup": "sums",
    "rollup_watermark": "sums",
    "delta": "sums",
    "day_grouping": "sums",
    "day_group": "sums",
    "day_span": "sums",
    "day_sum": "sums",
    "day_forgotten": "sums",
    "removed_sum": "of removed records, with which no ledger is copied",
    "consumer": "positions in this database",
}
OF_RECORDS = {"organization", "series", "pricing", "usage", "first_record", "erased", "revision"}


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_no_table_is_forgotten(backend: str) -> None:
    schema = (files(f"llm_cost_ops.ledger.{backend}") / "schema.sql").read_text()
    tables = set(re.findall(r"CREATE TABLE (?:llm_cost_ops\.)?(\w+)", schema))
    shared = set(import_module(f"llm_cost_ops.ledger.{backend}.transfer")._SHARED)
    assert tables - NOT_COPIED.keys() == OF_RECORDS | shared
