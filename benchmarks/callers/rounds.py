"""What every caller of bench_transports does: make calls for a while when told to, and count them.

A line of JSON on standard input asks for a round, a line on standard output tells of it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

RECORD = {
    "organization_id": "bench",
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 500,
    "project_id": "search",
    "tags": ["production"],
}
QUERY = {"organization_id": "bench", "group_by": "provider"}

SyncCalls = Mapping[str, Callable[[], object]]
AsyncCalls = Mapping[str, Callable[[], Awaitable[object]]]


def _uuid7() -> Callable[[], str]:
    # By its path: some callers have another package of the same name, generated from our .proto files.
    path = Path(__file__).parents[2] / "llm_cost_ops/wire/uuid7.py"
    spec = importlib.util.spec_from_file_location("uuid7_of_ours", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make: Callable[[], str] = module.uuid7
    return make


new_key = _uuid7()


def sync_round(call: Callable[[], object], callers: int, seconds: float) -> int:
    """Calls that `callers` threads make in about `seconds`."""
    counts = [0] * callers
    end = time.perf_counter() + seconds

    def run(caller: int) -> None:
        done = 0
        while time.perf_counter() < end:
            call()
            done += 1
        counts[caller] = done

    if callers == 1:
        run(0)
        return counts[0]
    threads = [threading.Thread(target=run, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


async def async_round(call: Callable[[], Awaitable[object]], callers: int, seconds: float) -> int:
    """Calls that `callers` tasks make in about `seconds`."""
    end = time.perf_counter() + seconds

    async def run() -> int:
        done = 0
        while time.perf_counter() < end:
            await call()
            done += 1
        return done

    return sum(await asyncio.gather(*(run() for _ in range(callers))))


def answer(sync_calls: SyncCalls, open_async: Callable[[], Awaitable[AsyncCalls]] | None) -> None:
    """Answer requests for rounds until standard input ends."""
    loop = asyncio.new_event_loop()
    async_calls: AsyncCalls = loop.run_until_complete(open_async()) if open_async is not None else {}
    say({"sync": sorted(sync_calls), "async": sorted(async_calls)})
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        shape = asked["callers"], asked["seconds"]
        started, cpu = time.perf_counter(), time.process_time()
        if asked["colour"] == "sync":
            calls = sync_round(sync_calls[asked["method"]], *shape)
        else:
            calls = loop.run_until_complete(async_round(async_calls[asked["method"]], *shape))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - started
        say({"calls": calls, "wall": wall, "cpu": cpu})


def say(told: Mapping[str, Any]) -> None:
    """One line to the benchmark."""
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
