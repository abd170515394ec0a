"""Consumers of what was committed: everything at least once, in one order, over processes and restarts."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm_cost_ops._gen.messages import CostStatus
from llm_cost_ops.ledger import Committed, Filter
from llm_cost_ops.ledger.consumers import catch_up
from llm_cost_ops.pricing.types import Priced
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError
from tests.unit.ledger.making import Sync, context, entry, pricing
from tests.waiting import until


def all_of(ledger: Sync, size: int) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    position = None
    while True:
        page, position = ledger.committed(position, size)
        if not page:
            return found
        assert len(page) <= size
        found += [(item.record.id, item.revision) for item in page]


def test_records_and_revisions_come_in_the_order_of_their_commits() -> None:
    with Sync() as ledger:
        expected: list[tuple[str, int]] = []
        for price in (7, 8, 9):
            done = ledger.append([entry(n, units=5) for n in range(3)])
            expected += [(one.usage_id, 1) for one in done]
            changed = Priced(price, pricing(CostStatus.PRICED))
            before = len({usage_id for usage_id, _ in expected})
            assert (
                ledger.reprice(Filter(), lambda _, p=changed: p, None, 100, dry_run=False).examined == before
            )
            for usage_id in [u for u, number in expected if number == 1]:
                expected.append((usage_id, 1 + sum(u == usage_id for u, _ in expected)))
            # What was given before stays where it was, whatever the size of the pages.
            for size in (1, 2, 5, 100):
                found = all_of(ledger, size)
                numbers: dict[str, int] = {}
                for usage_id, number in found:
                    numbers[usage_id] = numbers.get(usage_id, 0) + 1
                    assert numbers[usage_id] == number
                assert found == expected
        page, _ = ledger.committed(None, 4)
        assert [str(item.record.estimated_cost.normalize()) for item in page] == ["5E-12"] * 3 + ["7E-12"]


def test_a_position_moves_forward_only_and_after_the_work() -> None:
    with Sync() as ledger:
        ledger.append([entry(n) for n in range(5)])
        seen: list[int] = []

        async def fails_once(items: Sequence[Committed]) -> None:
            seen.append(len(items))
            if len(seen) == 2:
                raise ConnectionError

        with pytest.raises(ConnectionError):
            drive(catch_up(ledger.store, "alerts", fails_once, context(), limit=2))
        first = ledger.consumer_position("alerts")
        assert drive(catch_up(ledger.store, "alerts", fails_once, context(), limit=2)) == 3
        assert seen == [2, 2, 2, 1]
        last = ledger.consumer_position("alerts")
        assert drive(catch_up(ledger.store, "alerts", fails_once, context())) == 0
        ledger.move_consumer("alerts", first)
        assert ledger.consumer_position("alerts") == last
        assert ledger.consumer_position("webhooks") is None
        with pytest.raises(RpcError, match="position is not one that this ledger gave"):
            ledger.committed("1.x", 10)


APPENDING = """
import sys
from tests.unit.ledger.making import Sync, entry
ledger = Sync(sys.argv[1], durability="process")
for n in range(400):
    ledger.append([entry(n, idempotency_key=f"{sys.argv[2]}-{n}-{m}") for m in range(1 + n % 3)])
"""

CONSUMING = """
import sys
from llm_cost_ops.ledger.consumers import follow
from llm_cost_ops.rpc.context import drive
from tests.unit.ledger.making import Sync, context
ledger = Sync(sys.argv[1], durability="process")
async def handle(items):
    sys.stdout.write("".join(f"{item.record.idempotency_key}\\n" for item in items))
    sys.stdout.flush()
drive(follow(ledger.store, "test", handle, context(None), limit=20, every=0.005))
"""


def test_a_consumer_that_is_killed_misses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with Sync(path) as ledger:
        ledger.append([entry(idempotency_key="first")])
    writers = [subprocess.Popen([sys.executable, "-c", APPENDING, path, name]) for name in "ab"]
    expected = {f"{name}-{n}-{m}" for name in "ab" for n in range(400) for m in range(1 + n % 3)} | {"first"}
    seen = b""
    lives = 0
    while True:
        running = any(writer.poll() is None for writer in writers)
        consumer = subprocess.Popen([sys.executable, "-c", CONSUMING, path], stdout=subprocess.PIPE)
        assert consumer.stdout is not None
        told: list[bytes] = []
        reading = threading.Thread(target=told.extend, args=(consumer.stdout,))
        reading.start()
        if running:
            time.sleep(0.8)
        else:
            # What was handled and not noted so is handled again; the rest is what comes.
            until(lambda: set((seen + b"".join(told)).decode().split()) >= expected and all_noted(path))  # noqa: B023
        consumer.send_signal(signal.SIGKILL)
        reading.join()
        # A line that was cut off is not taken for one that was handled.
        seen += b"".join(told).rpartition(b"\n")[0] + b"\n"
        consumer.stdout.close()
        consumer.wait()
        lives += 1
        if not running:
            break
    assert {writer.wait() for writer in writers} == {0}
    with Sync(path) as ledger:
        drive(catch_up(ledger.store, "test", _ignore, context()))
        assert ledger.count(Filter()) == len(expected)
    assert set(seen.decode().split()) == expected, f"after {lives} lives"


def all_noted(path: Path) -> bool:
    """Whether nothing is left to be handled."""
    with Sync(path) as ledger:
        try:
            drive(catch_up(ledger.store, "test", _ignore, context()))
        except AssertionError:
            return False
    return True


async def _ignore(_: Sequence[Committed]) -> None:
    raise AssertionError("all was handled")
