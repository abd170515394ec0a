"""API keys, over each network transport: who is refused, in which words, and from when on."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from llm_cost_ops import AuthenticationError, AuthorizationError
from llm_cost_ops.types import HealthStatus
from tests.conformance.clients import COLOURS, running_server
from tests.conformance.keyed import Clients, KeyedServer, keyed_server, make_key, revoke
from tests.waiting import MAX_WAIT

CALL: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000}
WAYS = [f"{transport}-{colour}" for transport in ("http", "grpc") for colour in COLOURS]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    with keyed_server(tmp_path_factory.mktemp("keyed")) as server:
        yield server


@pytest.fixture(params=WAYS)
async def clients(server: KeyedServer, request: pytest.FixtureRequest) -> AsyncIterator[Clients]:
    made = Clients(server, *request.param.split("-"))
    yield made
    await made.close()


async def refusal(client: Any) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as caught:
        await client.costs.get(organization_id="acme")
    assert (caught.value.status_code, caught.value.code) == (401, "UNAUTHENTICATED")
    return caught.value


async def test_whoever_has_no_key_in_force_hears_the_same(clients: Clients) -> None:
    database = clients.server.database
    good = clients.server.keys["acme"]
    revoked = make_key(database, ["acme"])
    revoke(database, revoked)
    expired = make_key(database, ["acme"], expired=True)
    wrong_secret = good[:-1] + ("b" if good.endswith("a") else "a")
    bad = [None, revoked, expired, wrong_secret, "lco_aaaaaaaa_" + good[13:], "x", good + " " + good]
    said = {(await refusal(clients.of(key))).message for key in bad}
    assert len(said) == 1
    for key in filter(None, bad):
        assert not any(key in text for text in said)


async def test_a_key_is_refused_from_its_revocation_on(clients: Clients) -> None:
    database = clients.server.database
    key = make_key(database, ["acme"])
    client = clients.of(key)
    await client.usage.submit(organization_id="acme", **CALL)
    # By a process that is not the server's.
    command = [sys.executable, "-m", "llm_cost_ops.cli", "keys", "revoke", key[4:12], "--db", str(database)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    await refusal(client)


def test_a_silent_stream_takes_no_more_once_its_key_is_revoked(server: KeyedServer) -> None:
    key = make_key(server.database, ["acme"])
    url = httpx.URL(server.urls["http"])
    head = (
        "POST /api/v1/usage/stream HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
        f"transfer-encoding: chunked\r\nauthorization: Bearer {key}\r\n\r\n"
    )
    line = msgspec.json.encode({"organization_id": "acme", "user_id": "silent", **CALL}) + b"\n"
    chunk = b"%x\r\n%s\r\n" % (len(line), line)
    with socket.create_connection((url.host, url.port or 80), MAX_WAIT) as connection:
        told = connection.makefile("rb")
        connection.sendall(head.encode() + chunk)
        while not (said := told.readline()).startswith(b"{"):
            assert said
        assert b'"durable":1' in said
        revoke(server.database, key)
        time.sleep(1.1)  # so long a look at the key holds
        connection.sendall(chunk)
        rest = told.read()
    assert b"UNAUTHENTICATED" in rest
    assert b"durable" not in rest
    asked = {"authorization": f"Bearer {server.keys['acme']}"}
    costs = httpx.get(f"{server.urls['http']}/api/v1/costs?user_id=silent", headers=asked).json()
    assert costs["data"]["total_requests"] == 1


async def test_health_needs_no_key(clients: Clients) -> None:
    anybody = clients.of(None)
    assert (await anybody.health()).status == HealthStatus.HEALTHY
    assert (await anybody.ready()).status == HealthStatus.HEALTHY
    assert (await clients.of("wrong").health()).status == HealthStatus.HEALTHY


async def test_roles(clients: Clients) -> None:
    await clients.acme_reader.costs.get()
    with pytest.raises(AuthorizationError, match="SubmitUsage needs an API key with the role writer"):
        await clients.acme_reader.usage.submit(organization_id="acme", **CALL)
    with pytest.raises(AuthorizationError, match="CreatePrice needs an API key with the role admin"):
        await clients.acme.pricing.create(
            organization_id="acme", provider="p", model_id="m", input_price_per_1k="1"
        )


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Basic eDp5")],
        [("authorization", "Bearer")],
        [("authorization", "KEY")],
        [("authorization", "Bearer KEY"), ("authorization", "Bearer KEY")],
        [("x-api-key", "KEY")],
    ],
)
def test_other_schemes(server: KeyedServer, headers: list[tuple[str, str]]) -> None:
    key = server.keys["acme"]
    sent = [(name, value.replace("KEY", key)) for name, value in headers]
    answer = httpx.get(f"{server.urls['http']}/api/v1/costs", headers=sent)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "UNAUTHENTICATED"


def test_a_body_is_not_read_without_a_key(server: KeyedServer) -> None:
    url = httpx.URL(server.urls["http"])
    for extra, status in (("", b" 401 "), (f"authorization: Bearer {server.keys['acme']}\r\n", b" 415 ")):
        with socket.create_connection((url.host, url.port or 80), 5) as connection:
            head = f"POST /api/v1/usage HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n{extra}"
            connection.sendall(f"{head}content-type: text/plain\r\n\r\n".encode())
            assert status in connection.recv(4096), "although no byte of the body was sent"


def test_the_scheme_is_read_in_any_case(server: KeyedServer) -> None:
    headers = {"authorization": f"bearer  {server.keys['acme']}"}
    assert httpx.get(f"{server.urls['http']}/api/v1/costs", headers=headers).status_code == 200


@pytest.mark.parametrize("way", WAYS)
async def test_an_open_server_closes_with_the_first_key(tmp_path: Path, way: str) -> None:
    with running_server(tmp_path, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0") as urls:
        server = KeyedServer(tmp_path, urls, {})
        clients = Clients(server, *way.split("-"))
        await clients.of(None).usage.submit(organization_id="acme", **CALL)
        await clients.of("whatever").usage.submit(organization_id="acme", **CALL)
        key = make_key(server.database, ["acme"])
        await refusal(clients.of(None))
        assert (await clients.of(key).costs.get()).total_requests == 2
        revoke(server.database, key)
        await refusal(clients.of(key))
        await refusal(clients.of(None))
        await clients.close()


def test_keys_may_be_required_before_there_is_one(tmp_path: Path) -> None:
    with running_server(tmp_path, "--http", "127.0.0.1:0", "--require-keys") as urls:
        url = f"{urls['http']}/api/v1/costs"
        assert httpx.get(url).status_code == 401
        key = make_key(tmp_path / "server.db", ["acme"])
        assert httpx.get(url, headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_all_addresses_may_be_listened_on_with_keys(tmp_path: Path) -> None:
    make_key(tmp_path / "server.db", ["acme"])
    with running_server(tmp_path, "--http", "0.0.0.0:0") as urls:
        url = urls["http"].replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/api/v1/costs").status_code == 401
