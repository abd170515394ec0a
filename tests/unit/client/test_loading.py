"""What a client loads: only what its transport uses, when it is made and after a call."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from llm_cost_ops._gen.messages import GetCostSummaryResponse
from llm_cost_ops._gen.methods import GET_COST_SUMMARY
from llm_cost_ops.types import CostSummary
from tests import faulty_grpc_peers as over_grpc
from tests.faulty_peers import FaultyPeer, answer

SCRIPT = """
import sys
from llm_cost_ops import CostOpsClient, CostOpsError
print("imported", *sys.modules)
client = CostOpsClient(base_url=sys.argv[1])
print("made", *sys.modules)
if sys.argv[2] == "answers":
    assert client.costs.get(retry=None).currency == "USD"
print("called", *sys.modules)
client.close()
"""
EMBEDDED = {
    "sqlite3",
    "llm_cost_ops.ledger",
    "llm_cost_ops.service",
    "llm_cost_ops.catalog",
    "llm_cost_ops.pricing",
    "llm_cost_ops.server",
    "llm_cost_ops.cli",
    "llm_cost_ops.transports.inprocess",
}
DRIVER = {"psycopg", "llm_cost_ops.ledger.postgres"}
HTTP = {"httpx", "httpcore", "llm_cost_ops.transports.http.client"}
GRPC = {"grpclib", "grpc", "llm_cost_ops.transports.grpc.client"}
ASYNCIO = {"asyncio", "ssl"}
ANSWER = GetCostSummaryResponse(data=CostSummary(currency="USD"))


def _http(connection: Any) -> None:
    connection.read_request()
    connection.sendall(answer("200 OK", GET_COST_SUMMARY.response.encode_json(ANSWER)))


def _grpc(connection: Any) -> None:
    peer = over_grpc.Http2(connection)
    message = over_grpc.frame(GET_COST_SUMMARY.response.encode(ANSWER))
    peer.send(peer.read_request(), over_grpc.HEAD, message, over_grpc.DONE)
    peer.wait()  # a socket that is closed with bytes unread resets, and the answer may be lost


def loaded(url: str, *, answers: bool = True) -> dict[str, set[str]]:
    command = [sys.executable, "-c", SCRIPT, url, "answers" if answers else "is silent"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return {line.split()[0]: set(line.split()[1:]) for line in lines}


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "sqlite"])
def test_a_client_loads_what_its_transport_uses(scheme: str) -> None:
    if scheme == "sqlite":
        stages = loaded("sqlite://")
        unused = HTTP | GRPC | DRIVER | {"ssl"}
    else:
        with FaultyPeer(_http if scheme.startswith("http") else _grpc) as peer:
            stages = loaded(f"{scheme}://127.0.0.1:{peer.port}", answers=not scheme.endswith("s"))
        unused = EMBEDDED | DRIVER | (GRPC if scheme.startswith("http") else HTTP)
    assert not stages["imported"] & (EMBEDDED | DRIVER | HTTP | GRPC | ASYNCIO)
    assert not stages["made"] & unused
    assert not stages["called"] & unused


def test_a_ledger_in_postgresql_loads_no_other(postgres_url: str) -> None:
    stages = loaded(postgres_url)
    assert not stages["imported"] & (EMBEDDED | DRIVER | HTTP | GRPC | ASYNCIO)
    assert stages["called"] >= DRIVER
    assert not stages["called"] & ({"sqlite3"} | HTTP | GRPC)
