"""A server that asks for keys, and clients of several organizations and roles over one transport."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from llm_cost_ops._gen.methods import GET_HEALTH
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.rpc.context import CallContext, Metadata, drive
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.service.access.keys import create_key, revoke_key
from tests.conformance.clients import open_client, running_server

WHO: dict[str, tuple[Sequence[str], str]] = {
    "acme": (["acme"], "writer"),
    "acme_reader": (["acme"], "reader"),
    "acme_admin": (["acme"], "admin"),
    "globex": (["globex"], "writer"),
    "globex_admin": (["globex"], "admin"),
    "both": (["acme", "globex"], "writer"),
    "everyone": (["*"], "admin"),
}


@contextlib.contextmanager
def opened(database: Path) -> Iterator[tuple[Any, CallContext]]:
    """The keys of a database, in this process, and a context to ask for them."""
    store = SqliteLedger(str(database))
    try:
        yield store.keys, CallContext(GET_HEALTH, SyncRuntime(), Metadata())
    finally:
        drive(store.aclose())


class AnHourAgo(SyncRuntime):
    def now(self) -> float:
        return super().now() - 3600


def make_key(
    database: Path, organizations: Sequence[str], role: str = "writer", *, expired: bool = False
) -> str:
    with opened(database) as (keys, context):
        until = None
        if expired:
            context.runtime = AnHourAgo()
            until = datetime.now(UTC) - timedelta(seconds=1)
        made = create_key(keys, context, organizations=organizations, role=role, expires_at=until)
        return drive(made)[1]


def revoke(database: Path, key: str) -> None:
    with opened(database) as (keys, context):
        drive(revoke_key(keys, key, context))


class KeyedServer:
    """Where it listens, its database, and a key for each name in WHO."""

    def __init__(self, folder: Path, urls: dict[str, str], keys: dict[str, str]) -> None:
        self.database = folder / "server.db"
        self.urls = urls
        self.keys = keys


@contextlib.contextmanager
def keyed_server(folder: Path, *arguments: str) -> Iterator[KeyedServer]:
    keys = {name: make_key(folder / "server.db", *who) for name, who in WHO.items()}
    listeners = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with running_server(folder, *listeners, "--durability", "process", *arguments) as urls:
        yield KeyedServer(folder, urls, keys)


class Clients:
    """A client per key, made when first asked for: `clients.acme`, or `clients.of(key)`."""

    def __init__(self, server: KeyedServer, transport: str, colour: str) -> None:
        self.server = server
        self.transport = transport
        self._colour = colour
        self._made: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return self.of(self.server.keys[name])

    def of(self, key: str | None) -> Any:
        found = self._made.get(key or "")
        if found is None:
            options = {} if key is None else {"api_key": key}
            found = open_client(self.server.urls[self.transport], self._colour, **options)
            self._made[key or ""] = found
        return found

    async def close(self) -> None:
        for client in self._made.values():
            await client.close()
