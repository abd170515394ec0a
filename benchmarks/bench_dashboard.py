"""What a page of the dashboard costs the server: milliseconds and bytes, over a ledger of 10^6 records.

The pages are asked for as a browser does, over the ASGI app without a socket; medians of five. On a machine
that does other work too, the CPU time of the process says more than the clock.
`bench_dashboard.py [RECORDS] [every-model]`.

A user calls two models, one of them mostly. With `every-model` each of a thousand users calls every model
every day: there are nearly as many combinations as records, their sums are not kept, and the page of one
user reads rows.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from llm_cost_ops._gen.messages import CostStatus, UsageRecord
from llm_cost_ops._gen.methods import LIST_USAGE
from llm_cost_ops.ledger import Entry, Ledger, open_ledger
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import CallContext, Metadata, drive
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.server import asgi_app

DAYS = 90
SERIES = [("openai", f"gpt-{n}") for n in range(8)] + [("anthropic", f"claude-{n}") for n in range(4)]
PRICED = Pricing(CostStatus.PRICED, "USD", "card-1", 1)
UNPRICED = Pricing(CostStatus.UNPRICED, "", "", 0)
PAGES = [
    ("cost, 30 days by model", "/"),
    ("cost, 90 days by provider", "/?period=90d&by=provider"),
    ("cost, 90 days by model, in Kolkata", "/?period=90d&tz=Asia/Kolkata"),
    ("cost, 7 days by hour", "/?period=7d&interval=hour"),
    ("cost, 30 days by project", "/?by=project"),
    ("cost, 30 days by tag", "/?by=tag"),
    ("cost, 30 days by user (1,000)", "/?by=user"),
    ("cost, 30 days of one user", "/?user=user-7"),
    ("tokens, 30 days", "/dashboard/tokens"),
    ("requests, 30 days", "/dashboard/requests"),
    ("records", "/dashboard/records"),
    ("records of a project", "/dashboard/records?project=project-3"),
    ("unpriced", "/dashboard/unpriced"),
    ("prices", "/dashboard/prices"),
    ("keys", "/dashboard/keys"),
]


def filled(path: Path, count: int, *, every_model: bool = False) -> Ledger:
    """A ledger with so many records of the last DAYS days."""
    ledger = open_ledger(str(path), durability="process")
    chance = random.Random(1)
    context = CallContext(LIST_USAGE, SyncRuntime(), Metadata())
    first = datetime.now(UTC) - timedelta(days=DAYS)
    step = timedelta(days=DAYS) / count
    for begin in range(0, count, 10_000):
        batch = []
        for number in range(begin, min(begin + 10_000, count)):
            user = chance.randrange(1000)
            # Of a user: one model mostly, and another one.
            offset = chance.randrange(len(SERIES)) if every_model else chance.choice((0, 0, 0, 5))
            provider, model = SERIES[(user + offset) % len(SERIES)]
            moment = first + number * step
            record = UsageRecord(
                organization_id="acme", provider=provider, model_id=model, timestamp=moment,
                input_tokens=1000, output_tokens=100, total_tokens=1100, cached_tokens=400,
                user_id=f"user-{user}", project_id=f"project-{chance.randrange(12)}",
                tags=[f"tag-{chance.randrange(6)}"],
            )  # fmt: skip
            known = chance.random() > 0.01
            price = chance.randrange(10**10) if known else None
            batch.append(Entry(record, "", moment, price, PRICED if known else UNPRICED))
        drive(ledger.append(batch, context))
    return ledger


async def measure(ledger: Ledger) -> None:
    app = asgi_app(ledger, require_keys=False, dashboard=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        print(f"{'page':38}{'ms':>9}{'CPU ms':>9}{'kB':>9}")
        for name, address in PAGES:
            times, works = [], []
            for _ in range(6):
                began, worked = time.perf_counter(), time.process_time()
                answer = await client.get(address)
                times.append(time.perf_counter() - began)
                works.append(time.process_time() - worked)
                assert answer.status_code == 200, answer.text[-500:]
            took, cpu = (statistics.median(each[1:]) * 1e3 for each in (times, works))
            print(f"{name:38}{took:9.1f}{cpu:9.1f}{len(answer.content) / 1000:9.1f}", flush=True)


def main() -> None:
    count = next((int(text) for text in sys.argv[1:] if text.isdecimal()), 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        ledger = filled(Path(folder) / "costs.db", count, every_model="every-model" in sys.argv)
        print(f"{count:,} records of {DAYS} days")
        asyncio.run(measure(ledger))
        drive(ledger.aclose())


if __name__ == "__main__":
    main()
