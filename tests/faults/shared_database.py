"""Servers over one database, the load on them, and what has to be in the database afterwards."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import psycopg

from llm_cost_ops import CostOpsClient, CostOpsError
from llm_cost_ops.ledger import Filter, open_ledger
from tests.served import Served, served
from tests.unit.ledger.making import Sync
from tests.waiting import MAX_WAIT

__all__ = ["USAGE", "Load", "Server", "check_kept", "execute", "servers", "submit"]

USAGE = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 10, "output_tokens": 5}


class Server:
    """A `serve` process, and its addresses."""

    def __init__(self, process: Served) -> None:
        self._served = process
        [self.url] = [url for url in process.urls if url.startswith("http:")]
        [self.grpc] = [url for url in process.urls if url.startswith("grpc:")]

    def kill(self) -> None:
        """As a machine that is lost kills it."""
        self._served.process.send_signal(signal.SIGKILL)
        self._served.process.wait(60)


@contextmanager
def servers(db: str, count: int = 3) -> Iterator[list[Server]]:
    """So many servers over a database, over HTTP and gRPC."""
    listen = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with ExitStack() as stack:
        with ThreadPoolExecutor(count) as pool:
            starting = [served("--db", db, *listen, listeners=2) for _ in range(count)]
            started = list(pool.map(stack.enter_context, starting))
        yield [Server(each) for each in started]


def submit(client: CostOpsClient, key: str) -> str:
    return client.usage.submit(organization_id="acme", idempotency_key=key, **USAGE).usage_id


def execute(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


class Load:
    """Threads that submit keys one after the other, and note which were acknowledged."""

    def __init__(self, urls: Sequence[str], threads: int = 6, timeout: float = MAX_WAIT) -> None:
        self.acknowledged: list[str] = []
        self.failed: list[str] = []
        self.longest = 0.0
        self._ended = threading.Event()
        self._clients = [CostOpsClient(base_url=url, timeout=timeout) for url in urls]
        self._threads = [threading.Thread(target=self._submit, args=(n,)) for n in range(threads)]

    def _submit(self, thread: int) -> None:
        client, number = self._clients[thread % len(self._clients)], 0
        while not self._ended.is_set():
            key, number, began = f"{thread}-{number}", number + 1, time.monotonic()
            try:
                submit(client, key)
                self.acknowledged.append(key)
            except CostOpsError as error:
                self.failed.append(f"{key}: {error}")
            self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()

    def wait_for(self, more: int, seconds: float = MAX_WAIT) -> None:
        """Wait until so many more keys were acknowledged."""
        wanted, until = len(self.acknowledged) + more, time.monotonic() + seconds
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < until, (self.failed[-3:], len(self.acknowledged))
            time.sleep(0.02)


def check_kept(url: str, load: Load) -> None:
    """Every acknowledged key is there once, none twice, and the sums are those of the rows."""
    kept = [key for (key,) in execute(url, "SELECT key FROM llm_cost_ops.usage")]
    assert len(kept) == len(set(kept))
    assert set(load.acknowledged) <= set(kept)
    with Sync(ledger=open_ledger(url)) as ledger:
        assert ledger.find_faults() == []
        assert ledger.count(Filter()) == len(kept)
