"""The clients under test: every transport, in both colours, behind one awaitable face."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import Any

from llm_cost_ops import AsyncCostOpsClient, CostOpsClient
from tests.served import served

TRANSPORTS = ("inprocess", "http", "grpc")
COLOURS = ("sync", "async")


class Awaiting:
    """A sync client whose calls can be awaited, so that one scenario serves both colours."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if inspect.ismethod(found):

            async def call(*args: Any, **options: Any) -> Any:
                return found(*args, **options)

            return call
        return Awaiting(found) if hasattr(found, "_channel") else found


async def each(call: Any) -> AsyncIterator[Any]:
    """What a streaming method gives, in either colour; closed when it is left."""
    stream = await call if inspect.isawaitable(call) else call
    if hasattr(stream, "__aiter__"):
        async with aclosing(stream):
            async for item in stream:
                yield item
    else:
        with closing(stream):
            for item in stream:
                yield item


def open_client(base_url: str, colour: str, **options: Any) -> Any:
    if colour == "sync":
        return Awaiting(CostOpsClient(base_url=base_url, **options))
    return AsyncCostOpsClient(base_url=base_url, **options)


@contextmanager
def running_server(folder: Path, *arguments: str, db: str = "") -> Iterator[dict[str, str]]:
    """A server of its own process on free ports; yields the base URL of each transport.

    Its database is a file in the folder, or `db`.
    """
    listeners = sum(argument in ("--http", "--grpc") for argument in arguments)
    with served("--db", db or str(folder / "server.db"), *arguments, listeners=listeners) as server:
        yield {url.partition(":")[0]: url.rstrip(".,/") for url in server.urls}
