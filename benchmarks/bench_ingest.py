"""How fast does the store take usage: one record at a time, and in batches beside a raw executemany?

The raw rows go into the same usage table with the same indexes, in the same run, alternating with the
store's; the store also makes ids, encodes records, and keeps sums, terms and answers, and the client
checks and prices each record before. Keys are UUIDv7 on all sides.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from llm_cost_ops import ClientConfig, CostOpsClient
from llm_cost_ops._gen.messages import CostStatus, UsageRecord
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.ledger.sqlite.connection import Database
from llm_cost_ops.ledger.sqlite.rows import prepare
from llm_cost_ops.ledger.types import Entry
from llm_cost_ops.pricing.pricebook import Pricing
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.ids import uuid7
from llm_cost_ops.rpc.metadata import Metadata
from llm_cost_ops.rpc.runtime import SyncRuntime, drive

START = datetime(2026, 1, 1, tzinfo=UTC)
MODELS = ["gpt-4o", "gpt-4o-mini", "claude-sonnet-4", "gemini-2.5-pro"]
BATCH = 1000
PRICING = Pricing(CostStatus.PRICED, "USD", "card-1", 1)
CONTEXT = CallContext(method=None, runtime=SyncRuntime(), metadata=Metadata())


def entry(n: int) -> Entry:
    moment = START + timedelta(seconds=n)
    record = UsageRecord(
        organization_id="acme",
        provider="openai",
        model_id=MODELS[n % 4],
        input_tokens=1000 + n % 7,
        output_tokens=500,
        total_tokens=1500 + n % 7,
        cached_tokens=128,
        timestamp=moment,
        project_id=f"project-{n % 5}",
        session_id="0b7f5b1e",
        latency_ms=812,
        source="api",
    )
    return Entry(record, uuid7(), moment, 7_500_000_000 + n, PRICING)


def sent(n: int) -> UsageRecord:
    """The same record as a caller makes it: the client fills in the key, the service the rest."""
    record = entry(n).record
    record.total_tokens = None
    return record


def single(path: str | None, durability: str, count: int) -> float:
    """The median of one append of one record, in microseconds."""
    store = SqliteLedger(path, durability=durability)
    entries = [entry(n) for n in range(count)]
    took = []
    for each in entries:
        began = time.perf_counter()
        drive(store.append([each], CONTEXT))
        took.append(time.perf_counter() - began)
    drive(store.aclose())
    return statistics.median(took[count // 10 :]) * 1e6


class RawRows:
    """executemany of ready rows into the store's own usage table."""

    def __init__(self, path: str, durability: str) -> None:
        self._connection = Database(path, durability).connect()

    def rows(self, entries: list[Entry]) -> list[tuple[Any, ...]]:
        # Organization, series and pricing as the store would number them.
        return [(None, 1, 1 + n % 20, 1, *prepare(each)[1]) for n, each in enumerate(entries)]

    def insert(self, rows: list[tuple[Any, ...]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(f"INSERT INTO usage VALUES ({', '.join('?' * 18)})", rows)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


def batches(folder: str, durability: str, count: int) -> tuple[float, float, float]:
    """Records a second: the whole client's, the store's, and raw. They take turns, batch by batch."""
    client = CostOpsClient(
        base_url=f"sqlite:///{folder}/client-{durability}.db", config=ClientConfig(durability=durability)
    )
    store = SqliteLedger(f"{folder}/store-{durability}.db", durability=durability)
    raw = RawRows(f"{folder}/raw-{durability}.db", durability)
    whole = ours = theirs = 0.0
    for at in range(0, count, BATCH):
        entries = [entry(n) for n in range(at, at + BATCH)]
        rows = raw.rows([entry(n) for n in range(at, at + BATCH)])
        records = [sent(n) for n in range(at, at + BATCH)]
        began = time.perf_counter()
        client.usage.submit_batch(records)
        whole += time.perf_counter() - began
        began = time.perf_counter()
        drive(store.append(entries, CONTEXT))
        middle = time.perf_counter()
        raw.insert(rows)
        theirs += time.perf_counter() - middle
        ours += middle - began
    client.close()
    drive(store.aclose())
    raw.close()
    return count / whole, count / ours, count / theirs


def main() -> None:
    gc.disable()
    with tempfile.TemporaryDirectory() as folder:
        print("single append, median µs")
        print(f"  memory              {single(None, 'process', 10_000):8.1f}   (target about 12)")
        print(f"  WAL file, process   {single(f'{folder}/1.db', 'process', 10_000):8.1f}   (target about 40)")
        print(f"  WAL file, disk      {single(f'{folder}/2.db', 'disk', 500):8.1f}   (an fsync each)")
        print(f"batches of {BATCH:,}, records a second")
        for durability in ("process", "disk"):
            whole, store, raw = batches(folder, durability, 100_000)
            print(
                f"  WAL file, {durability:8} raw executemany {raw:9,.0f}   store {store:9,.0f}, "
                f"ratio {store / raw:.2f}   client {whole:9,.0f}, ratio {whole / raw:.2f}   (target 0.50)"
            )


if __name__ == "__main__":
    main()
