"""A process that can start no thread for a moment: what is asked then fails, what comes later does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llm_cost_ops._gen.messages import SubmitStatus
from llm_cost_ops.ledger.postgres.append import Appender
from llm_cost_ops.ledger.postgres.workers import Ticket, Workers
from llm_cost_ops.ledger.sqlite.ledger import SqliteLedger
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.transports.grpc.portal import Portal
from tests.unit.ledger.making import context, entry
from tests.unit.ledger.test_postgres_workers import Database
from tests.waiting import MAX_WAIT


@contextmanager
def no_threads() -> Iterator[None]:
    """In it no thread starts."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            yield


def test_a_shared_commit(tmp_path: Path) -> None:
    ledger = SqliteLedger(str(tmp_path / "costs.db"), durability="disk", group_commit=True)
    with no_threads():
        drive(ledger.append([entry()], context()))
    appended = drive(ledger.append([entry()], context()))
    assert appended is not None
    assert appended[0].status is SubmitStatus.CREATED
    drive(ledger.aclose())


def test_a_call_over_grpc() -> None:
    async def answer() -> int:
        return 1

    portal = Portal("test")
    with no_threads():
        portal.run(answer, MAX_WAIT)
    assert portal.run(answer, MAX_WAIT) == 1
    portal.close()


def test_nothing_stays_queued_for_postgresql() -> None:
    """Else it would be written by the next thread, though its caller was told of an error."""
    appender = Appender(cast("Any", None), lambda *_: None)
    workers = Workers(cast("Any", Database()), 1)
    with no_threads():
        appender.put(cast("Any", SimpleNamespace(rows=[1])), None)
    done: list[str] = []
    with no_threads():
        workers.put(Ticket(lambda _: done.append("refused"), None))
    workers.put(later := Ticket(lambda _: done.append("later"), None))
    later.future.result(MAX_WAIT)
    assert (appender.waiting, done) == (0, ["later"])
    appender.close()
    workers.close()
