"""Fixtures: `client` is every transport in both colours; `organization` is new for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from llm_cost_ops.client import clients, options
from llm_cost_ops.client.batching import Flight, Group
from llm_cost_ops.client.task_batching import TaskBatching
from llm_cost_ops.client.thread_batching import ThreadBatching
from llm_cost_ops.rpc.context import uuid7
from llm_cost_ops.transports.grpc.connection import CallConnection
from tests.conformance.clients import COLOURS, TRANSPORTS, open_client, running_server


@pytest.fixture(scope="session")
def server_urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    listeners = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with running_server(tmp_path_factory.mktemp("server"), *listeners, "--durability", "process") as urls:
        yield urls


@pytest.fixture(scope="session")
def postgres_urls(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A database in PostgreSQL, and a server over it."""
    listeners = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    db = postgres.new_database()
    with running_server(tmp_path_factory.mktemp("postgres"), *listeners, db=db) as urls:
        yield {"inprocess": db, **urls}


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    """Where the ledger is: "sqlite" or "postgres"."""
    return str(getattr(request, "param", "sqlite"))


WAYS = [f"{transport}-{colour}" for transport in TRANSPORTS for colour in COLOURS]


@pytest.fixture(params=[*WAYS, *(f"grpc-{colour}-json" for colour in COLOURS)])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Transport and colour. Each codec of gRPC is a way of its own, which a connection keeps to."""
    transport, colour, *codec = request.param.split("-")
    if transport == "grpc":
        monkeypatch.setattr(CallConnection, "takes_json", codec == ["json"])
    return transport, colour


@pytest.fixture
def base_url(way: tuple[str, str], database: str, request: pytest.FixtureRequest) -> str:
    if database == "postgres":
        return str(request.getfixturevalue("postgres_urls")[way[0]])
    if way[0] == "inprocess":
        return "sqlite://"
    return request.getfixturevalue("server_urls")[way[0]]


IN_BATCHES_TOO = ("test_usage", "test_errors", "test_keys", "test_tenancy", "test_closing", "test_many_calls")
"""What holds for a submit holds as well for one that rides in a batch, and with batching off."""


ON_POSTGRES_TOO = (
    "test_usage",
    "test_queries",
    "test_receipts",
    "test_corrections",
    "test_many_calls",
    "test_recording",
)
"""What holds whatever database the ledger is in."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.module.__name__.rpartition(".")[2]
    if name in IN_BATCHES_TOO and {"way", "client", "clients"} & set(metafunc.fixturenames):
        metafunc.parametrize("sending", ["", "alone", "in-batches"], indirect=True)
    if "base_url" in metafunc.fixturenames and name in ON_POSTGRES_TOO:
        metafunc.parametrize("database", ["sqlite", "postgres"], indirect=True)


@pytest.fixture(autouse=True)
def sending(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How clients send submits: as they do, with batching off, or each in a batch of its own."""
    how = getattr(request, "param", "")
    if how == "alone":
        chain_of = clients.chain_of

        def without(config: Any, *arguments: Any, **options: Any) -> list[Any]:
            off = config.replace(batching=config.batching.replace(enabled=False))
            return chain_of(off, *arguments, **options)

        monkeypatch.setattr(clients, "chain_of", without)
    elif how == "in-batches":
        submit_of, add_of = TaskBatching._submit, Group.add
        sending_by: ContextVar[Any] = ContextVar("sending_by")

        async def submit(self: Any, *arguments: Any) -> Any:
            sending_by.set(self)
            return await submit_of(self, *arguments)

        def add(self: Any, rider: Any, size: int) -> None:
            add_of(self, rider, size)
            if rider.creator is not None:  # a task's; a thread's leads its flight itself, below
                self.remove(rider)
                self.in_flight += 1
                sending_by.get()._take_off([rider])

        async def lead(self: Any, rider: Any) -> Any:
            rider.group.remove(rider)
            rider.group.in_flight += 1
            return Flight([rider])

        # In memory too, where nobody waits for a commit.
        monkeypatch.setattr(options, "_batching_of", lambda config, **_: config.batching)
        monkeypatch.setattr(Group, "enter", lambda _: False)
        monkeypatch.setattr(Group, "add", add)
        monkeypatch.setattr(TaskBatching, "_submit", submit)
        monkeypatch.setattr(ThreadBatching, "_outcome", lead)


@pytest.fixture
async def client(way: tuple[str, str], base_url: str) -> AsyncIterator[Any]:
    made = open_client(base_url, way[1])
    yield made
    await made.close()


@pytest.fixture
def organization() -> str:
    return f"org-{uuid7()}"
