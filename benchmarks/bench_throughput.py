"""How many submits a second do 1, 64 and 1,000 callers get done, each of which waits for its answer?

A server of its own process, as durable as it is by default. Ours with batching and without, over HTTP, gRPC
and into a file in the process; beside it httpx and, where it is installed, aiohttp, which post the same
record to the same server. The rounds of all take turns in one run, and a figure is the median of its rounds.
Callers and server share the machine with whatever else runs: compare the ratios of one run. "CPU" is what
callers and server computed for a submit, which depends less on that.

Targets: 64 callers at least 8 times aiohttp and 30 times httpx, 1,000 callers at least 20 times aiohttp, one
caller as fast as without batching, 64 threads at least 4 times as fast as without.

Run: python benchmarks/bench_throughput.py [--seconds 1] [--rounds 5] [--callers 1 64 1000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec

from llm_cost_ops import AsyncCostOpsClient, BatchingConfig, ClientConfig, ConnectionPoolConfig, CostOpsClient
from llm_cost_ops.rpc.context import uuid7

RECORD: dict[str, Any] = {
    "organization_id": "acme",
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 500,
}
CONNECTIONS = ConnectionPoolConfig().max_connections
Way = Callable[[int, float], "Done"]


class Done(NamedTuple):
    """So many submits in so many seconds."""

    submits: int
    seconds: float


def config_of(url: str, *, batching: bool) -> ClientConfig:
    return ClientConfig(base_url=url, timeout=120, batching=BatchingConfig(enabled=batching))


async def rate_of(submit: Callable[[], Awaitable[Any]], callers: int, seconds: float) -> Done:
    """What so many tasks get done."""
    done = 0
    await submit()
    started = time.monotonic()

    async def call() -> None:
        nonlocal done
        while time.monotonic() < started + seconds:
            await submit()
            done += 1

    await asyncio.gather(*(call() for _ in range(callers)))
    return Done(done, time.monotonic() - started)


def in_tasks(url: str, callers: int, seconds: float, *, batching: bool = True) -> Done:
    async def run() -> Done:
        async with AsyncCostOpsClient(config=config_of(url, batching=batching)) as client:
            return await rate_of(partial(client.usage.submit, **RECORD), callers, seconds)

    return asyncio.run(run())


def in_threads(url: str, callers: int, seconds: float, *, batching: bool = True) -> Done:
    done = [0] * callers
    with CostOpsClient(config=config_of(url, batching=batching)) as client:
        client.usage.submit(**RECORD)
        started = time.monotonic()

        def call(number: int) -> None:
            while time.monotonic() < started + seconds:
                client.usage.submit(**RECORD)
                done[number] += 1

        threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Done(sum(done), time.monotonic() - started)


def body() -> bytes:
    return msgspec.json.encode({**RECORD, "idempotency_key": uuid7()})


JSON = {"content-type": "application/json"}


def with_httpx(url: str, callers: int, seconds: float) -> Done:
    async def run() -> Done:
        import httpx

        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

            async def submit() -> None:
                answer = await client.post("/api/v1/usage", content=body(), headers=JSON)
                assert answer.status_code == 201

            return await rate_of(submit, callers, seconds)

    return asyncio.run(run())


def with_aiohttp(url: str, callers: int, seconds: float) -> Done:
    async def run() -> Done:
        import aiohttp

        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        async with aiohttp.ClientSession(url, connector=connector) as session:

            async def submit() -> None:
                async with session.post("/api/v1/usage", data=body(), headers=JSON) as answer:
                    assert answer.status == 201
                    await answer.read()

            return await rate_of(submit, callers, seconds)

    return asyncio.run(run())


@contextmanager
def serving(folder: str) -> Iterator[tuple[dict[str, str], int]]:
    """The URLs of a server, by scheme, and its process id."""
    command = [sys.executable, "-m", "llm_cost_ops.cli", "serve", "--db", str(Path(folder) / "server.db")]
    command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            urls: dict[str, str] = {}
            while len(urls) < 2:
                for url in re.findall(r"\b(?:http|grpc)://[0-9.:]+", server.stdout.readline()):
                    urls[url.partition(":")[0]] = url
            yield urls, server.pid
        finally:
            server.terminate()


def ways_of(callers: int, urls: dict[str, str], folder: str) -> dict[str, Way]:
    ways: dict[str, Way] = {"httpx": partial(with_httpx, urls["http"])}
    if find_spec("aiohttp"):
        ways["aiohttp"] = partial(with_aiohttp, urls["http"])
    urls = {**urls, "a file": f"sqlite:///{folder}/embedded.db"}
    for name, url in urls.items():
        ways[f"{name}, off"] = partial(in_tasks, url, batching=False)
        ways[name] = partial(in_tasks, url)
    if callers <= 64:
        for name, url in urls.items():
            ways[f"{name}, threads, off"] = partial(in_threads, url, batching=False)
            ways[f"{name}, threads"] = partial(in_threads, url)
    return ways


def computed(pid: int) -> float:
    """Seconds that this process and the server have computed."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(callers: int, ways: dict[str, Way], pid: int, seconds: float, rounds: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            before = computed(pid)
            done = way(callers, seconds)
            found[name].append((done.submits / done.seconds, (computed(pid) - before) / done.submits))
    rates = {name: median(rate for rate, _ in each) for name, each in found.items()}
    heads = f"{'a second':>10} {'x httpx':>9} {'x aiohttp':>10} {'x off':>7} {'CPU us':>8}"
    print(f"{callers:,} callers{'':10} {heads}")
    for name, rate in rates.items():
        others = (rates["httpx"], rates.get("aiohttp"), rates.get(f"{name}, off"))
        shown = (
            f"{f'{rate / other:.1f}' if other else '':>{width}}"
            for other, width in zip(others, (9, 10, 7), strict=True)
        )
        cpu = median(each for _, each in found[name]) * 1e6
        print(f"  {name:<20} {rate:10,.0f} {' '.join(shown)} {cpu:8,.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 64, 1000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(folder) as (urls, pid):
        for callers in options.callers:
            compare(callers, ways_of(callers, urls, folder), pid, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
