"""Three servers on one database behind the clients of each kind: two of them go under load, no call fails."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient
from llm_cost_ops.types import UsageRecord
from tests.served import Served, served

CALLERS = 16
CALLS = 300
"""For each kind of client."""

KINDS = ("http-sync", "http-async", "grpc-sync", "grpc-async", "recorder")
CALL: dict[str, Any] = {
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 1,
}


class Falling:
    """Hands out calls, and lets servers fall while they go on: one is killed, one stopped, one stays."""

    def __init__(self, servers: list[Served]) -> None:
        self._lock = threading.Lock()
        self._left = {kind: iter(range(CALLS)) for kind in KINDS}
        self._answered = 0
        self._falls: dict[int, Callable[[], None]] = {
            CALLS * len(KINDS) // 5: servers[0].process.kill,
            CALLS * len(KINDS) // 2: servers[1].process.terminate,
        }

    def key(self, kind: str) -> str | None:
        """The key of the next call of a kind, None after the last."""
        with self._lock:
            number = next(self._left[kind], None)
        return None if number is None else f"{kind}-{number}"

    def answered(self) -> None:
        with self._lock:
            self._answered += 1
            fall = self._falls.get(self._answered)
        if fall is not None:
            fall()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Served]]:
    arguments = ("--db", str(tmp_path / "costs.db"), "--durability", "process", "--no-dashboard")

    def start() -> contextlib.AbstractContextManager[Served]:
        return served(*arguments, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", listeners=2)

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        yield list(pool.map(lambda _: stack.enter_context(start()), range(3)))


def url_of(servers: list[Served], scheme: str) -> str:
    urls = [next(url for url in server.urls if url.startswith(scheme)) for server in servers]
    return f"{scheme}://" + ",".join(url.partition("://")[2] for url in urls)


def test_no_call_fails_while_one_server_lives(servers: list[Served], tmp_path: Path) -> None:
    falling = Falling(servers)
    runs: dict[str, Callable[[], list[str]]] = {
        "http-sync": lambda: _submitted(url_of(servers, "http"), falling, "http-sync"),
        "http-async": lambda: asyncio.run(_submitted_async(url_of(servers, "http"), falling, "http-async")),
        "grpc-sync": lambda: _submitted(url_of(servers, "grpc"), falling, "grpc-sync"),
        "grpc-async": lambda: asyncio.run(_submitted_async(url_of(servers, "grpc"), falling, "grpc-async")),
        "recorder": lambda: _recorded(url_of(servers, "grpc"), falling),
    }
    with ThreadPoolExecutor(len(KINDS)) as pool:
        kept = dict(zip(KINDS, pool.map(lambda kind: runs[kind](), KINDS), strict=True))
    assert servers[0].process.wait(60) != 0
    assert servers[1].process.wait(60) == 0
    with CostOpsClient(base_url=f"sqlite:///{tmp_path}/costs.db") as client:
        for kind in KINDS:
            assert len(kept[kind]) == len(set(kept[kind])) == CALLS
            assert client.costs.get(organization_id=kind).total_requests == CALLS
            assert client.costs.get(organization_id=kind).total_tokens == 1001 * CALLS


def _config(url: str, kind: str) -> ClientConfig:
    """All by default, but for a deadline that a busy machine keeps."""
    return ClientConfig(base_url=url, timeout=60.0, organization_id=kind)


def _submitted(url: str, falling: Falling, kind: str) -> list[str]:
    """The ids of the records that threads submitted, one by one and in batches."""
    kept: list[str] = []
    with CostOpsClient(config=_config(url, kind)) as client:

        def call(number: int) -> None:
            while (key := falling.key(kind)) is not None:
                if number % 4:
                    kept.append(client.usage.submit(**CALL, idempotency_key=key).usage_id)
                else:
                    record = UsageRecord(organization_id=kind, idempotency_key=key, **CALL)
                    [result] = client.usage.submit_batch([record]).results
                    assert result.usage is not None
                    kept.append(result.usage.usage_id)
                falling.answered()
                if number == 1:
                    client.costs.get()

        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(call, range(CALLERS)))
    return kept


async def _submitted_async(url: str, falling: Falling, kind: str) -> list[str]:
    kept: list[str] = []
    async with AsyncCostOpsClient(config=_config(url, kind)) as client:

        async def call(number: int) -> None:
            while (key := falling.key(kind)) is not None:
                kept.append((await client.usage.submit(**CALL, idempotency_key=key)).usage_id)
                falling.answered()
                if number == 1:
                    await client.costs.get()

        await asyncio.gather(*map(call, range(CALLERS)))
    return kept


def _recorded(url: str, falling: Falling) -> list[str]:
    kept = []
    with CostOpsClient(config=_config(url, "recorder")) as client:
        while (key := falling.key("recorder")) is not None:
            client.usage.record(**CALL, idempotency_key=key)
            kept.append(key)
            falling.answered()
        report = client.flush(60.0)
    assert (report.delivered + report.duplicates, report.pending, report.dropped) == (CALLS, 0, 0)
    return kept
