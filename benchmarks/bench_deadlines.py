"""How far over its deadline a call runs when the peer misbehaves: each fault, sync and async, over HTTP.

Run: python benchmarks/bench_deadlines.py. Prints milliseconds over a deadline of 300 ms, the median and the
worst of ten calls. The aim: at most 50 ms on an idle machine. Beside it, plain httpx with timeout=0.3, which
bounds each read and not the call; it is left alone after 3 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from llm_cost_ops import AsyncCostOpsClient, CostOpsClient, NetworkError
from llm_cost_ops.types import UsageRecord
from tests.faulty_peers import (
    FaultyPeer,
    drips_body,
    drips_headers,
    drips_interim,
    full_backlog,
    never_reads,
    silent,
)

DEADLINE = 0.3
CALLS = 10
SMALL = [UsageRecord(organization_id="org-1", provider="openai", model_id="gpt-4o", input_tokens=1)]
LARGE = [
    UsageRecord(organization_id="org-1", provider="openai", model_id="gpt-4o", tags=["t" * 250] * 64)
    for _ in range(500)
]


@contextlib.contextmanager
def peer(behave: Callable[..., None], scheme: str = "http") -> Iterator[str]:
    with FaultyPeer(behave) as faulty:
        yield f"{scheme}://127.0.0.1:{faulty.port}"


@contextlib.contextmanager
def unreachable() -> Iterator[str]:
    with full_backlog() as port:
        yield f"http://127.0.0.1:{port}"


SCENES = {
    "connect gets no answer": unreachable,
    "TLS handshake gets no answer": lambda: peer(silent, "https"),
    "request is never read (8 MB)": lambda: peer(never_reads),
    "silent after the request": lambda: peer(silent),
    "headers drip": lambda: peer(drips_headers),
    "interim answers drip": lambda: peer(drips_interim),
    "body drips": lambda: peer(drips_body),
}


def sync_call(url: str, records: list[UsageRecord]) -> float:
    with CostOpsClient(base_url=url, api_key="k", timeout=DEADLINE) as client:
        started = time.perf_counter()
        with contextlib.suppress(NetworkError):
            client.usage.submit_batch(records)
        return time.perf_counter() - started


def async_call(url: str, records: list[UsageRecord]) -> float:
    async def run() -> float:
        async with AsyncCostOpsClient(base_url=url, api_key="k", timeout=DEADLINE) as client:
            started = time.perf_counter()
            with contextlib.suppress(NetworkError):
                await client.usage.submit_batch(records)
            return time.perf_counter() - started

    return asyncio.run(run())


def httpx_call(url: str, records: list[UsageRecord]) -> float:
    client = httpx.Client(timeout=DEADLINE)

    def run() -> None:
        with contextlib.suppress(httpx.HTTPError), client:
            client.post(url, content=b" " * 16_000 * len(records))

    thread = threading.Thread(target=run, daemon=True)
    started = time.perf_counter()
    thread.start()
    thread.join(3)
    return time.perf_counter() - started


def shown(taken: list[float]) -> str:
    over = [(seconds - DEADLINE) * 1000 for seconds in taken]
    return f"{statistics.median(over):9.1f} {max(over):9.1f}"


def main() -> None:
    """Print the table."""
    heads = "   ".join(f"{name:>9s} {'worst':>9s}" for name in ("sync", "async", "httpx"))
    print(f"{'ms over the deadline':32s}{heads}")
    for name, open_scene in SCENES.items():
        records = LARGE if "8 MB" in name else SMALL
        columns = []
        with open_scene() as url:
            columns += [shown([call(url, records) for _ in range(CALLS)]) for call in (sync_call, async_call)]
            columns.append(shown([httpx_call(url, records) for _ in range(2)]))
        print(f"{name:32s}{'   '.join(columns)}", flush=True)


if __name__ == "__main__":
    main()
