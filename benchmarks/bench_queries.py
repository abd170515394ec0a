"""Do cost queries grow with the groups or with the events? 10^4 against 10^6 events, same groups and days.

By user they grow with the users of each day and model: 1,000 users come to 9,800 sums of the smaller number
of events here, and to 289,000 of the larger.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta

from llm_cost_ops._gen.messages import CostStatus, UsageRecord
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.ledger.types import Entry, Filter
from llm_cost_ops.pricing.pricebook import Pricing
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.metadata import Metadata
from llm_cost_ops.rpc.runtime import SyncRuntime, drive
from llm_cost_ops.rules.times import buckets_between, parse_interval

START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 30
SERIES = [("openai", f"gpt-{n}") for n in range(6)] + [("anthropic", f"claude-{n}") for n in range(4)]
PRICING = Pricing(CostStatus.PRICED, "USD", "card-1", 1)
CONTEXT = CallContext(method=None, runtime=SyncRuntime(), metadata=Metadata())


def entry(at: float, chance: random.Random) -> Entry:
    provider, model = chance.choice(SERIES)
    moment = START + timedelta(seconds=at)
    record = UsageRecord(
        organization_id="acme", provider=provider, model_id=model, timestamp=moment,
        input_tokens=1000, output_tokens=100, total_tokens=1100,
        user_id=f"user-{chance.randrange(1000)}",
    )  # fmt: skip
    return Entry(record, "", moment, chance.randrange(10**10), PRICING)


def filled(events: int) -> SqliteLedger:
    store, chance = SqliteLedger(), random.Random(1)
    step = DAYS * 86_400 / events
    for first in range(0, events, 10_000):
        batch = [entry(n * step, chance) for n in range(first, min(first + 10_000, events))]
        drive(store.append(batch, CONTEXT))
    # The newest records are in no sum yet.
    for _ in range(127 - events % 128):
        drive(store.append([entry(chance.random() * DAYS * 86_400, chance)], CONTEXT))
    return store


def took(store: SqliteLedger, where: Filter, group_by: tuple[str, ...], interval: str, zone: str) -> float:
    """The median of a query, in milliseconds."""
    times = []
    for _ in range(7):
        began = time.perf_counter()
        buckets = None
        if interval:
            assert where.start is not None
            assert where.end is not None
            buckets = buckets_between(where.start, where.end, interval, zone)
        drive(store.summarize(where, group_by, buckets, CONTEXT))
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or [10_000, 1_000_000]
    stores = [filled(size) for size in sizes]
    days = parse_interval("2026-01-01", "2026-01-30")
    ragged = (START + timedelta(seconds=4321.5), START + timedelta(days=29, seconds=1234.5))
    queries = [
        ("by provider, all time", (None, None), ("provider",), "", ""),
        ("by provider and model", days, ("provider", "model"), "", ""),
        ("by day, UTC", days, (), "day", ""),
        ("by day, Asia/Kolkata", days, (), "day", "Asia/Kolkata"),
        ("by hour, UTC", days, (), "hour", ""),
        ("by model, ragged ends", ragged, ("model",), "", ""),
        ("by user", days, ("user",), "", ""),
    ]
    print(f"{'milliseconds for events:':26}" + "".join(f"{size:>12,}" for size in sizes) + f"{'ratio':>8}")
    for name, (start, end), group_by, interval, zone in queries:
        where = Filter(start=start, end=end)
        found = [took(store, where, group_by, interval, zone) for store in stores]
        print(f"{name:26}" + "".join(f"{ms:12.2f}" for ms in found) + f"{found[-1] / found[0]:8.2f}")
    for store in stores:
        drive(store.aclose())


if __name__ == "__main__":
    main()
