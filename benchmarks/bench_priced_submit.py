"""What does pricing add to an in-process submit on a file?

The same client, service and store twice, on a file each: one prices as it always does (makes sure that
no cards are new, selects a card, calculates, names it in the row), the other takes every record as
unpriced. Their calls alternate in blocks, whose order alternates too, so that both see the same machine.
The target is at most 15 %. "process" commits without fsync: there pricing has the least to hide behind.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from llm_cost_ops import CostOpsClient
from llm_cost_ops._gen.messages import CostStatus
from llm_cost_ops.config import ClientConfig
from llm_cost_ops.pricing.types import Priced, Pricing
from llm_cost_ops.service import open_service
from llm_cost_ops.transports.inprocess import InProcessTransport

START = datetime(2026, 1, 1, tzinfo=UTC)
MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "o3")
BLOCK = 200
BLOCKS = 60
UNPRICED = Priced(None, Pricing(CostStatus.UNPRICED, "USD"))


class NoPrices:
    """Takes every record as unpriced, at once."""

    def price(self, record: Any) -> Priced:
        return UNPRICED


def open_client(path: Path, durability: str, *, priced: bool) -> CostOpsClient:
    service = open_service(f"sqlite:///{path}", durability=durability)
    if not priced:
        prices: Any = service.prices
        prices.in_force = None, NoPrices()
    transport = InProcessTransport(service.handler, service.aclose)
    return CostOpsClient(config=ClientConfig(base_url="sqlite://"), transport=transport)


def block(client: CostOpsClient, first: int) -> list[float]:
    times = []
    for n in range(first, first + BLOCK):
        started = time.perf_counter()
        client.usage.submit(
            organization_id="acme",
            provider="openai",
            model_id=MODELS[n % 4],
            input_tokens=1000 + n % 7,
            cached_tokens=128,
            output_tokens=500,
            reasoning_tokens=100,
            project_id=f"project-{n % 5}",
            timestamp=START + timedelta(seconds=n),
        )
        times.append((time.perf_counter() - started) * 1e6)
    return times


def compare(durability: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clients = [open_client(Path(folder, f"{n}.db"), durability, priced=n == 1) for n in (0, 1)]
        for client in clients:
            block(client, 0)
        medians: tuple[list[float], list[float]] = ([], [])
        for n in range(1, BLOCKS + 1):
            for at in ((0, 1), (1, 0))[n % 2]:
                gc.collect()
                medians[at].append(statistics.median(block(clients[at], n * BLOCK)))
        for client in clients:
            assert client.costs.get().priced_fraction == (client is clients[1])
            client.close()
    without, priced = (statistics.median(found) for found in medians)
    ratios = [b / a - 1 for a, b in zip(*medians, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{durability:8} {without:9.1f} µs without prices {priced:9.1f} µs with   "
        f"+{middle:.1%} (quartiles {low:+.1%} to {high:+.1%})"
    )


def main() -> None:
    print(f"medians of {BLOCKS} blocks of {BLOCK} submits each, interleaved")
    for durability in ("process", "disk"):
        compare(durability)


if __name__ == "__main__":
    main()
