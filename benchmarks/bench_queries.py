"""Do queries grow with the groups or with the events? 10^5, 10^6 and 4*10^6 events of the same 30 days.

5,000 users, 10 models in 5 projects, three labels (of 20, 100 and 3 values), and tags. The first query of a
kind may keep sums of days: its CPU time is printed beside that of later ones. The files are built once
and kept in a folder for temporary files: set BENCH_QUERIES_DIR for another one, and delete it for new files.
Run: python benchmarks/bench_queries.py [events ...]
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from llm_cost_ops._gen.messages import Rate, RateCard, UsageRecord
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.ledger.types import Entry, Filter
from llm_cost_ops.pricing.pricebook import PriceBook
from llm_cost_ops.rpc.context import CallContext, Metadata, drive
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.rules.times import buckets_between, parse_interval

START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 30
MODELS = [("openai", f"gpt-{n}") for n in range(6)] + [("anthropic", f"claude-{n}") for n in range(4)]
CONTEXT = CallContext(method=None, runtime=SyncRuntime(), metadata=Metadata())
BOOK = PriceBook(
    cards=[
        RateCard(
            id=f"card-{provider}-{model}",
            provider=provider,
            model_id=model,
            currency="USD",
            version=1,
            rates=[
                Rate(meter="INPUT", price=Decimal(2 + n)),
                Rate(meter="CACHE_READ", price=Decimal("0.5")),
                Rate(meter="OUTPUT", price=Decimal(8 + n)),
            ],
        )
        for n, (provider, model) in enumerate(MODELS)
    ]
)


def entry(at: float, chance: random.Random) -> Entry:
    provider, model = MODELS[int(chance.random() * 10)]
    moment = START + timedelta(seconds=at)
    written, read = int(chance.random() * 900), int(chance.random() * 9000)
    record = UsageRecord(
        organization_id="acme",
        provider=provider,
        model_id=model,
        timestamp=moment,
        input_tokens=read,
        output_tokens=written,
        total_tokens=read + written,
        cached_tokens=read // 3,
        project_id=f"project-{int(chance.random() * 5)}",
        user_id=f"user-{int(chance.random() * 5000)}",
        tags=["chat", f"tag-{int(chance.random() * 40)}"],
        labels={
            "team": f"team-{int(chance.random() * 20)}",
            "feature": f"feature-{int(chance.random() * 100)}",
            "env": ("prod", "test", "dev")[int(chance.random() * 3)],
        },
    )
    priced = BOOK.price(record)
    return Entry(record, "", moment, priced.units, priced.by)


def opened(events: int) -> SqliteLedger:
    """The ledger with so many events, made where it is not there yet."""
    folder = Path(os.environ.get("BENCH_QUERIES_DIR") or Path(tempfile.gettempdir()) / "bench_queries")
    folder.mkdir(exist_ok=True)
    path = folder / f"{events}.db"
    if path.exists():
        return SqliteLedger(str(path), durability="process")
    building = folder / f"{events}.{os.getpid()}.building"
    store, chance = SqliteLedger(str(building), durability="process"), random.Random(1)
    step = DAYS * 86_400 / events
    began = time.process_time()
    for first in range(0, events, 10_000):
        batch = [entry(n * step, chance) for n in range(first, min(first + 10_000, events))]
        drive(store.append(batch, CONTEXT))
    drive(store.aclose())
    building.rename(path)
    took, size = time.process_time() - began, path.stat().st_size / events
    print(f"{events:,} events written in {took:.0f} s of CPU, {size:.0f} bytes each")
    return SqliteLedger(str(path), durability="process")


def timed(ask: Callable[[SqliteLedger], Any], store: SqliteLedger) -> tuple[float, float]:
    """CPU time of the first call and the median of up to seven more, in milliseconds."""
    times: list[float] = []
    while len(times) < 8 and (len(times) < 2 or sum(times) < 5_000):
        began = time.process_time()
        ask(store)
        times.append((time.process_time() - began) * 1e3)
    return times[0], statistics.median(times[1:])


def between(first: str, last: str, **fields: Any) -> Filter:
    start, end = parse_interval(first, last)
    return Filter(start=start, end=end, **fields)


def queries() -> list[tuple[str, Callable[[SqliteLedger], Any]]]:
    month = ("2026-01-01", "2026-01-30")
    days = between(*month)
    ragged = Filter(start=START + timedelta(seconds=4321.5), end=START + timedelta(days=29, seconds=1234.5))

    def sums(where: Filter, *group_by: str, interval: str = "", zone: str = "") -> Callable[..., Any]:
        def ask(store: SqliteLedger) -> None:
            buckets = None
            if interval:
                assert where.start is not None
                assert where.end is not None
                buckets = buckets_between(where.start, where.end, interval, zone)
            drive(store.sums.summarize(where, group_by, buckets, CONTEXT))

        return ask

    def page(where: Filter, number: int = 1, size: int = 20) -> Callable[..., Any]:
        def ask(store: SqliteLedger) -> None:
            offset = (number - 1) * size
            drive(store.list_usage(where, "timestamp", True, size, None, offset, CONTEXT))
            drive(store.sums.count(where, CONTEXT, 20_000))

        return ask

    return [
        ("by provider, all time", sums(Filter(), "provider")),
        ("by provider and model", sums(days, "provider", "model")),
        ("by day, UTC", sums(days, interval="day")),
        ("by day, Asia/Kolkata", sums(days, interval="day", zone="Asia/Kolkata")),
        ("by hour, UTC", sums(days, interval="hour")),
        ("by model, ragged ends", sums(ragged, "model")),
        ("by user", sums(days, "user")),
        ("by label", sums(days, "label:team")),
        ("by label and day", sums(days, "label:feature", interval="day")),
        ("by tag", sums(days, "tag")),
        ("by meter", sums(days, "meter")),
        ("by label and model", sums(days, "label:team", "model")),
        ("by two labels", sums(days, "label:team", "label:feature")),
        ("by user and project", sums(days, "user", "project")),
        ("by user and model", sums(days, "user", "model")),
        ("by user and model, 29 days", sums(between("2026-01-02", "2026-01-30"), "user", "model")),
        ("by user and model, a day", sums(between("2026-01-30", "2026-01-30"), "user", "model")),
        ("by user and label", sums(days, "user", "label:team")),
        ("by user, of a model", sums(between(*month, model_ids=("gpt-1",)), "user")),
        ("by user, of a label", sums(between(*month, labels={"team": "team-1"}), "user")),
        ("by model, of a user", sums(between(*month, user_ids=("user-7",)), "model")),
        ("by model and day, of a user", sums(between(*month, user_ids=("user-7",)), "model", interval="day")),
        ("page 1", page(Filter())),
        ("page 1 of a tag", page(Filter(tags=("tag-7",)))),
        ("page 1 of a label", page(Filter(labels={"feature": "feature-7"}))),
        ("page 1 of a user", page(Filter(user_ids=("user-7",)))),
        ("page 1 of a model", page(Filter(model_ids=("gpt-1",)))),
        ("page at 25 % of all, of 100", lambda store: deep(store, Filter())),
    ]


def deep(store: SqliteLedger, where: Filter) -> None:
    total = drive(store.sums.count(where, CONTEXT))
    assert total is not None
    drive(store.list_usage(where, "timestamp", True, 100, None, total // 4, CONTEXT))


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or [100_000, 1_000_000, 4_000_000]
    stores = [opened(size) for size in sizes]
    print(f"{'CPU ms for events (first):':28}" + "".join(f"{size:>22,}" for size in sizes))
    for name, ask in queries():
        cells = []
        for store in stores:
            first, median = timed(ask, store)
            cells.append(f"{median:10.1f} ({first:9.1f})")
        print(f"{name:28}" + "".join(cells), flush=True)
    for store in stores:
        drive(store.aclose())


if __name__ == "__main__":
    main()
