"""How long does an in-process submit take, sync and async, and where does the time go?

Targets: 25 µs median on memory, 60 µs on a WAL file with durability="process". Each run is cut in
ten: shown are the least of the ten medians, because neighbours on the machine only ever add, and the
median and the 99th percentile of the whole run. The breakdown times
the parts of the same submit one by one on memory; what it leaves over is calls between the parts.
Run: python benchmarks/bench_submit.py [submits]
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient
from llm_cost_ops._gen.messages import SubmitUsageRequest, UsageReceipt, UsageRecord
from llm_cost_ops._gen.methods import SUBMIT_USAGE
from llm_cost_ops._gen.resources import UsageResource
from llm_cost_ops.config import RetryConfig
from llm_cost_ops.interceptors.retry import Retry
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.ledger.sqlite.connection import Database
from llm_cost_ops.ledger.sqlite.rows import prepare
from llm_cost_ops.rpc.context import CallContext, Metadata, drive, uuid7
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.rules.requests import CHECKS
from llm_cost_ops.service import open_service
from llm_cost_ops.service.prices import Prices
from llm_cost_ops.service.usage import UsageService, new_entry

SUBMITS = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
WARM_UP = 500


def submit_to(usage: Any) -> Any:
    """The call, as callers write it."""
    return usage.submit(
        organization_id="acme",
        provider="openai",
        model_id="gpt-4o",
        input_tokens=1000,
        output_tokens=500,
        user_id="ada",
        project_id="search",
    )


def median(call: Callable[[], Any]) -> tuple[float, float, float]:
    """The least median of ten parts, the median and the 99th percentile of one call, in microseconds."""
    for _ in range(WARM_UP):
        call()
    gc.collect()
    times = []
    for _ in range(SUBMITS):
        started = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - started) / 1000)
    return told(times)


def told(times: list[float]) -> tuple[float, float, float]:
    part = max(1, len(times) // 10)
    least = min(statistics.median(times[at : at + part]) for at in range(0, len(times) - part + 1, part))
    return least, statistics.median(times), statistics.quantiles(times, n=100)[98]


def sync_submit(config: ClientConfig) -> tuple[float, float, float]:
    with CostOpsClient(config=config) as client:
        usage = client.usage
        return median(lambda: submit_to(usage))


async def async_submit(config: ClientConfig) -> tuple[float, float, float]:
    async with AsyncCostOpsClient(config=config) as client:
        usage = client.usage
        for _ in range(WARM_UP):
            await submit_to(usage)
        gc.collect()
        times = []
        for _ in range(SUBMITS):
            started = time.perf_counter_ns()
            await submit_to(usage)
            times.append((time.perf_counter_ns() - started) / 1000)
    return told(times)


class Answering:
    """A transport that answers at once."""

    def __init__(self) -> None:
        self.response = SUBMIT_USAGE.response.type(data=UsageReceipt())

    async def unary_unary(self, request: Any, context: Any) -> Any:
        return self.response

    async def aclose(self) -> None:
        pass


class Taking:
    """What makes a record of the call's arguments."""

    def submit(self, **fields: Any) -> UsageRecord:
        return UsageRecord(**fields)


class Nowhere:
    """A channel that calls nobody."""

    def unary_unary(self, *arguments: Any) -> None:
        pass


class Keeping:
    """A store that keeps the last entry, and answers at once as the real one once did."""

    def __init__(self, store: Any, context: CallContext) -> None:
        self._store, self._context = store, context
        self._done: list[Any] = []
        self.entry: Any = None

    async def append(self, entries: Any, *options: Any) -> Any:
        self.entry = entries[0]
        if not self._done:
            self._done = await self._store.append(entries, self._context)
        return self._done


def breakdown() -> dict[str, float]:
    """The parts of a submit on memory: medians, in microseconds."""
    nowhere = UsageResource(Nowhere())
    resource, *_ = median(lambda: submit_to(nowhere))
    answering = CostOpsClient(base_url="sqlite://", transport=Answering())
    answering._channel = answering._channel.derived(interceptors=[Retry(RetryConfig())])
    through, *_ = median(lambda: submit_to(answering.usage))

    service = open_service("sqlite://", durability="process")
    prices = Prices(service.ledger)
    context = CallContext(SUBMIT_USAGE, SyncRuntime(), Metadata())
    drive(prices.refresh(context))
    one = SubmitUsageRequest(usage=submit_to(Taking()))
    one.usage.idempotency_key = uuid7()
    check, moment = CHECKS[SubmitUsageRequest], datetime.now(UTC)
    validation, *_ = median(lambda: check(one, context, [], False))

    keeping = Keeping(service.ledger, context)
    servicer = UsageService(keeping, prices)
    served, *_ = median(lambda: drive(servicer.submit_usage(one, context)))
    priced, book = keeping.entry.record, prices.in_force[1]
    pricing, *_ = median(lambda: book.price(priced, at=moment))

    entries = iter([replace(keeping.entry, key=uuid7()) for _ in range(SUBMITS + WARM_UP)])
    store, *_ = median(lambda: drive(service.ledger.append([next(entries)], context)))
    drive(service.aclose())
    return {
        "resource: arguments to a request": resource,
        "chain: deadline, key, interceptors": through - resource,
        "validation": validation,
        "pricing": pricing,
        "service: record, receipt": served - pricing,
        "store: id, content, one transaction": store,
    }


def bare(path: str | None, durability: str) -> tuple[float, float, float]:
    """The statement of a submit alone: an INSERT of a ready row, committed by itself."""
    store = SqliteLedger(path, durability=durability)
    context = CallContext(SUBMIT_USAGE, SyncRuntime(), Metadata())
    book, now = Prices(store).in_force[1], datetime.now(UTC)
    entries = [new_entry(submit_to(Taking()), uuid7(), now, book) for _ in range(SUBMITS + WARM_UP + 1)]
    drive(store.append([entries.pop()], context))
    connection = Database(path, durability).connect() if path else store._writer.open()
    rows = iter([(None, 1, 1, 1, *prepare(each)[1]) for each in entries])
    insert = f"INSERT INTO usage VALUES ({', '.join('?' * 18)})"
    found = median(lambda: connection.execute(insert, next(rows)))
    connection.close()
    return found


def places(folder: str) -> list[tuple[str, int | None, Callable[[str], ClientConfig]]]:
    """Where to submit to: a name, the target, and the configuration for a colour."""

    def file(durability: str) -> Callable[[str], ClientConfig]:
        return lambda colour: ClientConfig(
            base_url=f"sqlite:///{Path(folder) / f'{durability}-{colour}.db'}", durability=durability
        )

    return [
        ("memory", 25, lambda _: ClientConfig(base_url="sqlite://")),
        ("WAL file, process", 60, file("process")),
        ("WAL file, disk", None, file("disk")),
    ]


def main() -> None:
    print(f"{SUBMITS} submits, one after the other, in µs: least of ten medians (median, 99th percentile).")
    with tempfile.TemporaryDirectory() as folder:
        for name, target, config in places(folder):
            took = sync_submit(config("sync"))
            durability = config("sync").durability
            least, *_ = bare(None if name == "memory" else f"{folder}/bare-{durability}.db", durability)
            sync = "{:6.1f} ({:.1f}, {:.1f})".format(*took)
            other = "{:6.1f} ({:.1f}, {:.1f})".format(*asyncio.run(async_submit(config("async"))))
            print(
                f"{name:<18} sync {sync:<24} async {other:<24} {f'target {target}' if target else '':<10} "
                f"its INSERT alone {least:6.1f}: {took[0] / least:.1f} times"
            )
    parts = breakdown()
    print("\nWhere a sync submit on memory spends it:")
    for name, micros in parts.items():
        print(f"  {name:<38}{micros:>7.1f}")
    print(f"  {'sum':<38}{sum(parts.values()):>7.1f}")


if __name__ == "__main__":
    main()
