"""Erasing a user from a SQLite file: no byte of them stays, whatever was going on before and meanwhile."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET, Raw
from msgspec.structs import replace

from llm_cost_ops._gen.messages import SubmitStatus
from llm_cost_ops.ledger import Filter
from llm_cost_ops.ledger.erasure import without_user
from llm_cost_ops.ledger.sqlite import day_sums
from llm_cost_ops.wire.unknown import Unknown
from tests.ledger_suite import ask_everything, revise
from tests.life_suite import erase, events, faults, remove
from tests.unit.ledger.making import START, Sync, entry

USERS = [f"user-{number:03}@example.org" for number in range(30)]
ANN = USERS[7]
EVERYTHING = Filter()


def fill(ledger: Sync, records: int = 4000) -> None:
    """Records of many users out of order, some of them corrected, and sums by user that are kept."""
    made = random.Random(1)
    for at in range(0, records, 500):
        some = [
            entry(
                timedelta(minutes=made.randrange(3000)).total_seconds(),
                idempotency_key=f"k{number}",
                user_id=USERS[number % 30],
                labels={"who": USERS[number % 30], "text": "x" * made.randrange(200)},
            )
            for number in range(at, min(at + 500, records))
        ]
        done = ledger.append(some)
        for sent, answer in list(zip(some, done, strict=True))[::50]:
            revise(ledger, answer.usage_id, 1, replace(sent.record, user_id=made.choice(USERS)))
        ask_everything(ledger)


def test_no_byte_of_a_user_stays_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with Sync(path) as ledger:
        fill(ledger)
        ledger.append([entry(labels={ANN: "x"})])
        ledger.summarize(EVERYTHING, (f"label:{ANN}",), None)
        assert path.with_name("costs.db-wal").stat().st_size
        assert any(ANN.encode() in file.read_bytes() for file in tmp_path.iterdir())
        before = ledger.summarize(EVERYTHING, ("model",), None)
        assert erase(ledger, ANN) >= 133
        left = {file.name: file.read_bytes().count(ANN.encode()) for file in tmp_path.iterdir()}
        assert set(left.values()) == {0}, left
        assert ledger.summarize(EVERYTHING, ("model",), None) == before
        ask_everything(ledger)
        assert faults(ledger) == []
    # Nor when the connections are closed, and for the others it is as before.
    assert ANN.encode() not in path.read_bytes()
    assert USERS[8].encode() in path.read_bytes()


_KILLED = """
import os, signal, sys
from llm_cost_ops.ledger.sqlite import erasing, ledger
from tests.life_suite import erase
from tests.unit.ledger.making import Sync

done = erasing.erase

def erase_twice(*arguments):
    if calls.append(1) or len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return done(*arguments)

calls = []
erasing.erase = erase_twice
ledger._ERASED_AT_ONCE = 20
with Sync(sys.argv[1]) as store:
    erase(store, sys.argv[2])
"""


def test_an_erasure_that_was_killed_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with Sync(path) as ledger:
        fill(ledger)
        before = ledger.summarize(EVERYTHING, ("model",), None)
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(path), ANN], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with Sync(path) as ledger:
        told = [details["records"] for action, *_, details in events(ledger) if action == "user.erased"]
        assert 0 < sum(told) <= 40
        assert faults(ledger) == []
        assert ledger.summarize(EVERYTHING, ("model",), None) == before
        assert erase(ledger, ANN) > 50
        assert ANN.encode() not in path.read_bytes()
        assert ledger.summarize(EVERYTHING, ("model",), None) == before


def test_what_is_nested_too_deep_to_be_looked_into_stops_no_erasure() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    record = replace(entry(user_id="ann").record, unknown_=Unknown(json={"new": Raw(deep)}))
    assert without_user(record, "ann") == replace(record, user_id="", unknown_=UNSET)


def test_sums_that_were_added_up_before_an_erasure_are_not_kept_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = day_sums.store

    def erase_first(cursor: Any, **arguments: Any) -> bool:
        # Between the query that added them up and the transaction that keeps them.
        monkeypatch.setattr(day_sums, "store", kept)
        raced.append(1)
        day_sums.forget(cursor, "acme")
        return kept(cursor, **arguments)

    raced: list[int] = []
    with Sync(tmp_path / "costs.db") as ledger:
        ledger.append([entry(number, user_id=USERS[number % 3]) for number in range(1500)])
        monkeypatch.setattr(day_sums, "store", erase_first)
        ledger.summarize(EVERYTHING, ("user",), None)
        assert raced
        with ledger.store._writer.in_use:
            [groups] = ledger.store._writer.open().execute("SELECT count(*) FROM day_group").fetchone()
        assert groups == 0
        ledger.summarize(EVERYTHING, ("user",), None)
        with ledger.store._writer.in_use:
            [groups] = ledger.store._writer.open().execute("SELECT count(*) FROM day_group").fetchone()
        assert groups == 3


def test_no_byte_of_what_was_removed_stays_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    border = START + timedelta(days=1)
    with Sync(path) as ledger:
        later = border + timedelta(hours=1)
        late = [entry(later, user_id=USERS[8], idempotency_key=f"l{at}") for at in range(9)]
        fields = {"user_id": ANN, "labels": {"t": "very-own-word"}}
        early = [entry(at, idempotency_key=f"e{at}", **fields) for at in range(1500)]
        ledger.append(late + early)
        ask_everything(ledger)
        assert revise(ledger, ledger.append(early[:1])[0].usage_id, 1)
        ledger.set_retention("acme", 30)
        assert remove(ledger, border) == 1500
        ledger.store._writer.open().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert faults(ledger) == []
        assert ledger.summarize(EVERYTHING, (), None)[0][2].requests == 1508
    data = path.read_bytes()
    assert USERS[8].encode() in data
    assert ANN.encode() not in data
    assert b"very-own-word" not in data
    # What is left of a record takes a fraction of its room.
    with Sync(path) as ledger:
        ledger.append([replace(each, key=f"m{each.key}") for each in early])
        pages = ledger.store._writer.open().execute("PRAGMA freelist_count").fetchone()
        assert ledger.append(early)[0].status == SubmitStatus.DUPLICATE
    assert path.stat().st_size < 1.5 * len(data), pages
