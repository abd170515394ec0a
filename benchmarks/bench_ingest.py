"""How fast does the store take usage: one record at a time, and in batches beside a raw executemany?

The raw rows go into the same usage table with the same indexes, in the same run, alternating with the
client's; the client also checks, prices and encodes each record, makes ids and receipts, and keeps sums.
Keys are UUIDv7 on all sides. CPU µs of a record are this process's, on a file with durability "process";
over HTTP and gRPC there is one client process, and rates are by the clock: they need two idle cores.
Run: python benchmarks/bench_ingest.py [records]
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient
from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.ledger.sqlite.connection import Database
from llm_cost_ops.ledger.sqlite.rows import prepare
from llm_cost_ops.ledger.types import Entry
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import CallContext, Metadata, drive, uuid7
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.service.prices import Prices
from llm_cost_ops.service.usage import new_entry

START = datetime(2026, 1, 1, tzinfo=UTC)
MODELS = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-4o-mini"),
    ("anthropic", "claude-sonnet-4-20250514"),
    ("google", "gemini-2.5-pro"),
]
BATCH = 1000
CONTEXT = CallContext(method=None, runtime=SyncRuntime(), metadata=Metadata())


def usual(n: int) -> UsageRecord:
    provider, model = MODELS[n % 4]
    return UsageRecord(
        organization_id="acme",
        provider=provider,
        model_id=model,
        input_tokens=1000 + n % 7,
        output_tokens=500,
        cached_tokens=128,
        timestamp=START + timedelta(seconds=n),
        project_id=f"project-{n % 5}",
        user_id=f"user-{n % 50}",
        session_id="0b7f5b1e",
        latency_ms=812,
        source="api",
    )


def minimal(n: int) -> UsageRecord:
    provider, model = MODELS[n % 4]
    return UsageRecord(
        organization_id="acme",
        provider=provider,
        model_id=model,
        input_tokens=1000 + n % 7,
        output_tokens=500,
    )


def many(n: int) -> UsageRecord:
    """Of 5,000 users, with tags and three labels."""
    chance = random.Random(n)
    record = usual(n)
    record.user_id = f"user-{chance.randrange(5000)}"
    record.tags = ["chat", f"tag-{chance.randrange(40)}"]
    record.labels = {
        "team": f"team-{chance.randrange(20)}",
        "feature": f"feature-{chance.randrange(100)}",
        "env": chance.choice(["prod", "test", "dev"]),
    }
    return record


SHAPES: dict[str, Callable[[int], UsageRecord]] = {
    "usual": usual,
    "minimal": minimal,
    "5,000 users, tags, labels": many,
}


def single(path: str | None, durability: str, count: int) -> float:
    """The median of one append of one record, in microseconds."""
    store = SqliteLedger(path, durability=durability)
    entries = made_entries([usual(n) for n in range(count)])
    took = []
    for each in entries:
        began = time.perf_counter()
        drive(store.append([each], CONTEXT))
        took.append(time.perf_counter() - began)
    drive(store.aclose())
    return statistics.median(took[count // 10 :]) * 1e6


_BOOK = Prices(SqliteLedger()).in_force[1]


def made_entries(records: list[UsageRecord]) -> list[Entry]:
    """What the service makes of records."""
    now = datetime.now(UTC)
    return [new_entry(record, uuid7(), now, _BOOK) for record in records]


class RawRows:
    """executemany of ready rows into the store's own usage table."""

    def __init__(self, path: str, durability: str) -> None:
        self._connection = Database(path, durability).connect()
        self._series: dict[Any, int] = {}
        self._pricings: dict[Pricing, int] = {}

    def rows(self, entries: list[Entry]) -> list[tuple[Any, ...]]:
        """Organization, series and pricing as the store would number them."""
        rows = []
        for each in entries:
            key, columns, _ = prepare(each)
            series = self._series.setdefault(key, len(self._series) + 1)
            pricing = self._pricings.setdefault(each.by, len(self._pricings) + 1)
            rows.append((None, 1, series, pricing, *columns))
        return rows

    def insert(self, rows: list[tuple[Any, ...]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(f"INSERT INTO usage VALUES ({', '.join('?' * 18)})", rows)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


Clock = Callable[[], float]


def batches(
    client: CostOpsClient, raw: RawRows, shape: Callable[[int], UsageRecord], count: int, clock: Clock
) -> tuple[float, float]:
    """Seconds for a record: the client's and raw. They take turns, batch by batch."""
    ours, theirs = [], []
    for at in range(0, count, BATCH):
        rows = raw.rows(made_entries([shape(n) for n in range(at, at + BATCH)]))
        records = [shape(n) for n in range(at, at + BATCH)]
        began = clock()
        done = client.usage.submit_batch(records)
        middle = clock()
        raw.insert(rows)
        theirs.append(clock() - middle)
        ours.append(middle - began)
        assert done.created == BATCH
    return sum(ours[2:]) / (count - 2 * BATCH), sum(theirs[2:]) / (count - 2 * BATCH)


IN_FLIGHT = 4


async def submit_each(client: AsyncCostOpsClient, batches: Iterator[list[UsageRecord]]) -> None:
    for batch in batches:
        await client.usage.submit_batch(batch)


async def over_network(url: str, raw: RawRows, count: int) -> tuple[float, float]:
    """As `batches`, with several batches under way, and as many rows at a time inserted raw."""
    ours = theirs = 0.0
    rounds = max(2, count // (4 * IN_FLIGHT * BATCH))
    async with AsyncCostOpsClient(base_url=url, timeout=None) as client:
        await client.usage.submit_batch([usual(n) for n in range(BATCH)])
        for _ in range(rounds):
            sent = [[usual(n) for n in range(BATCH)] for _ in range(4 * IN_FLIGHT)]
            rows = [raw.rows(made_entries(batch)) for batch in sent]
            waiting = iter(sent)

            began = time.perf_counter()
            await asyncio.gather(*(submit_each(client, waiting) for _ in range(IN_FLIGHT)))
            middle = time.perf_counter()
            for each in rows:
                raw.insert(each)
            theirs += time.perf_counter() - middle
            ours += middle - began
    records = rounds * 4 * IN_FLIGHT * BATCH
    return ours / records, theirs / records


@contextmanager
def server(folder: str) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-m", "llm_cost_ops.cli", "serve", "--db", f"{folder}/server.db"]
    options = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--durability", "process"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        urls: dict[str, str] = {}
        for line in process.stdout:
            urls.update({found[1]: found[0].rstrip(".,") for found in re.finditer(r"(\w+)://[^\s,]+", line)})
            if {"http", "grpc"} <= urls.keys():
                break
        try:
            yield urls
        finally:
            process.terminate()


def shown(name: str, ours: float, raw: float, target: str) -> None:
    print(
        f"  {name:<28} client {ours * 1e6:6.1f} µs ({1 / ours:8,.0f}/s)   "
        f"raw {raw * 1e6:6.1f} µs ({1 / raw:8,.0f}/s)   ratio {raw / ours:.2f}   {target}",
        flush=True,
    )


TARGETS = {"usual": "(target 0.50)", "5,000 users, tags, labels": "(target 0.40)"}


def main() -> None:
    gc.disable()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000
    with tempfile.TemporaryDirectory() as folder:
        print("single append, median µs")
        print(f"  memory              {single(None, 'process', 10_000):8.1f}   (target about 12)")
        print(f"  WAL file, process   {single(f'{folder}/1.db', 'process', 10_000):8.1f}   (target about 40)")
        print(f"  WAL file, disk      {single(f'{folder}/2.db', 'disk', 500):8.1f}   (an fsync each)")
        print(f"batches of {BATCH:,} in the process, CPU time of a record")
        for n, (name, shape) in enumerate(SHAPES.items()):
            url, raw = f"sqlite:///{folder}/own-{n}.db", RawRows(f"{folder}/raw-{n}.db", "process")
            with CostOpsClient(base_url=url, config=ClientConfig(durability="process")) as client:
                ours, theirs = batches(client, raw, shape, count, time.process_time)
            raw.close()
            shown(name, ours, theirs, TARGETS.get(name, ""))
        print(f"batches of {BATCH:,} over a network transport, {IN_FLIGHT} in flight, by the clock")
        with server(folder) as urls:
            for transport, target in (("http", 0.40), ("grpc", 0.30)):
                raw = RawRows(f"{folder}/raw-{transport}.db", "process")
                ours, theirs = asyncio.run(over_network(urls[transport], raw, count))
                raw.close()
                shown(transport, ours, theirs, f"(target {target:.2f})")


if __name__ == "__main__":
    main()
