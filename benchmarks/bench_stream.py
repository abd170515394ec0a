"""How fast does usage get into the ledger as a stream, beside batches and single submits?

The same records over each transport, in one run: the embedded engine on a file, and a server process on
loopback over HTTP and gRPC, all with durability "disk". Streams and batches take turns. Exports are read
back from the same ledger.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_cost_ops import AsyncCostOpsClient, CostOpsClient, UsageRecord

STREAMED, SINGLE = 10_000, 300
SEGMENT, TURNS = 500, 5


def records(organization: str, count: int) -> Iterator[UsageRecord]:
    for number in range(count):
        yield UsageRecord(
            organization_id=organization,
            provider="openai",
            model_id="gpt-4o",
            input_tokens=1000 + number % 7,
            output_tokens=500,
            project_id=f"project-{number % 5}",
            latency_ms=812,
        )


@contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-m", "llm_cost_ops.cli", "serve", "--db", str(folder / "server.db")]
    listeners = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, *listeners], stdout=subprocess.PIPE, text=True, env=environment
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


def timed(name: str, started: float, count: int) -> None:
    shown(name, time.perf_counter() - started, count)


def shown(name: str, seconds: float, count: int) -> None:
    print(f"  {name:<16}{count / seconds:>10,.0f} records/s")


def sync(base_url: str, where: str) -> None:
    with CostOpsClient(base_url=base_url, timeout=None) as client:
        client.usage.stream(records(f"warm-{where}", SEGMENT))
        client.usage.submit_batch(list(records(f"warm-{where}", SEGMENT)))
        streaming = batching = 0.0
        for _ in range(TURNS):
            started = time.perf_counter()
            receipt = client.usage.stream(records(f"stream-{where}", STREAMED // TURNS), segment=SEGMENT)
            assert receipt.created == STREAMED // TURNS
            between = time.perf_counter()
            batch = list(records(f"batch-{where}", STREAMED // TURNS))
            for at in range(0, len(batch), SEGMENT):
                client.usage.submit_batch(batch[at : at + SEGMENT])
            streaming += between - started
            batching += time.perf_counter() - between
        shown("stream", streaming, STREAMED)
        shown("batch", batching, STREAMED)
        started = time.perf_counter()
        for record in records(f"single-{where}", SINGLE):
            client.usage.submit(record)
        timed("single", started, SINGLE)
        started = time.perf_counter()
        assert sum(1 for _ in client.usage.export(organization_id=f"stream-{where}")) == STREAMED
        timed("export", started, STREAMED)


async def asynchronous(base_url: str, where: str) -> None:
    async with AsyncCostOpsClient(base_url=base_url, timeout=None) as client:
        await client.usage.stream(records(f"warm-{where}", 500))
        started = time.perf_counter()
        receipt = await client.usage.stream(records(f"async-{where}", STREAMED), segment=SEGMENT)
        timed("async stream", started, STREAMED)
        assert receipt.created == STREAMED
        started = time.perf_counter()
        seen = [record async for record in client.usage.export(organization_id=f"async-{where}")]
        assert len(seen) == STREAMED
        timed("async export", started, STREAMED)


def main() -> None:
    with tempfile.TemporaryDirectory() as name, server(Path(name)) as urls:
        for transport, url in {"embedded": f"sqlite:///{name}/own.db", **urls}.items():
            print(f"{transport}, segments and batches of {SEGMENT}:")
            sync(url, transport)
            asyncio.run(asynchronous(url, transport))


if __name__ == "__main__":
    main()
