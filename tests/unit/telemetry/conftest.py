from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from hashlib import blake2b
from itertools import count
from pathlib import Path

import pytest

from llm_cost_ops import ClientConfig, CostOpsClient
from tests.sdk_stub import Stub, running_stub
from tests.waiting import MAX_WAIT


class RandomLooking(int):
    """A number that is written as providers write their ids, and not as servers count theirs."""

    def __format__(self, spec: str) -> str:
        return blake2b(str(int(self)).encode(), digest_size=12).hexdigest()


# openllmetry keeps the ids of responses that it has seen.
_numbers = count(1)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as server:
        server.numbers = map(RandomLooking, _numbers)
        yield server


@pytest.fixture
def client() -> Iterator[CostOpsClient]:
    config = ClientConfig(base_url="sqlite://", organization_id="acme")
    with CostOpsClient(config=config) as made:
        yield made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, CostOpsClient]]:
    """The address of a server, and a client that reads what it recorded."""
    from llm_cost_ops.server import asgi_app
    from llm_cost_ops.server.app import HttpServer

    path = tmp_path / "costs.db"
    app = asgi_app(str(path), require_keys=False)
    listener, started, stop = HttpServer(app, port=0), threading.Event(), threading.Event()
    found: list[str] = []

    async def run() -> None:
        found.append(await listener.start())
        started.set()
        await asyncio.to_thread(stop.wait)
        await listener.stop(1)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(MAX_WAIT)
    with CostOpsClient(base_url=f"sqlite:///{path}") as reader:
        yield found[0], reader
    stop.set()
    thread.join(MAX_WAIT)
