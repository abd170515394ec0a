"""A statement that runs for long ends by its deadline, and by Ctrl-C as such."""

from __future__ import annotations

import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from llm_cost_ops.ledger import open_ledger
from llm_cost_ops.ledger.sqlite.stopping import stopping
from llm_cost_ops.rpc.context import drive
from tests.unit.ledger.making import context

ENDLESS = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


class _AlarmError(Exception):
    pass


def _alarm(number: int, frame: FrameType | None) -> None:
    raise _AlarmError


@contextmanager
def signal_in(seconds: float, handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.start()
    try:
        yield
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    ("handler", "raised"), [(signal.default_int_handler, KeyboardInterrupt), (_alarm, _AlarmError)]
)
@pytest.mark.parametrize("is_late", [None, lambda: False])
def test_what_a_signal_s_handler_raises_stops_a_statement_and_is_raised(
    handler: Callable[[int, FrameType | None], object],
    raised: type[BaseException],
    is_late: Callable[[], bool] | None,
) -> None:
    connection = sqlite3.connect(":memory:")
    with signal_in(0.1, handler), pytest.raises(raised), stopping(connection, is_late):
        connection.execute(ENDLESS).fetchall()
    assert connection.execute("SELECT 1").fetchall() == [(1,)]
    connection.close()


def test_a_late_statement_is_stopped() -> None:
    connection = sqlite3.connect(":memory:")
    looks = iter([False, False, True])
    with pytest.raises(sqlite3.OperationalError) as stopped, stopping(connection, lambda: next(looks)):
        connection.execute(ENDLESS).fetchall()
    assert stopped.value.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT
    assert connection.execute("SELECT 1").fetchall() == [(1,)]
    connection.close()


@pytest.mark.parametrize("name", ["ledger.db", ""])
def test_ctrl_c_in_a_query_of_a_ledger_is_a_keyboard_interrupt(name: str, tmp_path: Path) -> None:
    ledger: Any = open_ledger(f"sqlite:///{tmp_path / name}" if name else "sqlite://")

    def read(query: str) -> Any:
        return drive(ledger._readers.read(lambda connection: connection.execute(query).fetchall(), context()))

    assert read("SELECT 1") == [(1,)]
    with signal_in(0.1, signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        read(ENDLESS)
    assert read("SELECT 1") == [(1,)]
    drive(ledger.aclose())
