"""Fixtures: `client` is every transport in both colours; `organization` is new for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from llm_cost_ops.rpc.ids import uuid7
from tests.conformance.clients import COLOURS, TRANSPORTS, open_client, running_server


@pytest.fixture(scope="session")
def server_urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    listeners = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with running_server(tmp_path_factory.mktemp("server"), *listeners, "--durability", "process") as urls:
        yield urls


@pytest.fixture(params=[f"{transport}-{colour}" for transport in TRANSPORTS for colour in COLOURS])
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    transport, colour = request.param.split("-")
    return transport, colour


@pytest.fixture
def base_url(way: tuple[str, str], request: pytest.FixtureRequest) -> str:
    if way[0] == "inprocess":
        return "sqlite://"
    return request.getfixturevalue("server_urls")[way[0]]


@pytest.fixture
async def client(way: tuple[str, str], base_url: str) -> AsyncIterator[Any]:
    made = open_client(base_url, way[1])
    yield made
    await made.close()


@pytest.fixture
def organization() -> str:
    return f"org-{uuid7()}"
