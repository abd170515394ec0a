"""Clients that others wrote, against our server: directly, and through nginx."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient, ValidationError
from llm_cost_ops.rpc.context import uuid7
from tests.conformance.clients import running_server
from tests.interop.conftest import PEERS
from tests.nginx import nginx
from tests.waiting import MAX_WAIT


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, "--grpc", "127.0.0.1:0", "--durability", "process") as urls:
        yield urls["grpc"].removeprefix("grpc://")


@pytest.fixture(scope="module", name="nginx")
def in_front(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An nginx in front of the server; its address."""
    with nginx(tmp_path_factory.mktemp("nginx"), grpc=[address]) as urls:
        yield urls["grpc"].removeprefix("grpc://")


@pytest.fixture(params=["address", "nginx"])
def target(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def answers(script: str, target: str, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, str(Path(PEERS) / script), target, f"org-{uuid7()}"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=2 * MAX_WAIT, check=False
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_grpcio(target: str, environment: dict[str, str]) -> None:
    seen = answers("grpcio_client.py", target, environment)
    assert seen["cost"] == "0.0075"
    assert (seen["duplicate"], seen["same"], seen["listed"]) == ([False, True], True, 61)
    assert seen["trailers"]["x-request-id"] == "mine-1"
    assert seen["conflict"]["code"] == "ALREADY_EXISTS"
    assert seen["conflict"]["request_id"] == "mine-1"
    assert seen["invalid"]["code"] == "INVALID_ARGUMENT"
    assert seen["invalid"]["status"] == 3
    assert {"organization_id", "input_tokens"} <= {field for field, _ in seen["invalid"]["violations"]}
    assert seen["missing"]["code"] == "NOT_FOUND"
    assert seen["garbage"]["code"] == "INVALID_ARGUMENT"
    assert seen["garbage"]["violations"]
    assert seen["unknown"]["code"] == "UNIMPLEMENTED"
    assert seen["metadata"]["code"] == "INVALID_ARGUMENT"


@pytest.mark.skipif(importlib.util.find_spec("connectrpc") is None, reason="connectrpc is not installed")
def test_connectrpc(target: str, environment: dict[str, str]) -> None:
    seen = answers("connectrpc_client.py", target, environment)
    assert seen["cost"] == "0.0025"
    assert (seen["duplicate"], seen["listed"]) == ([False, True], 61)
    assert seen["trailers"]["x-request-id"] == "mine-1"
    assert seen["invalid"]["code"] == "INVALID_ARGUMENT"
    assert "input_tokens" in seen["invalid"]["message"]


def test_ours_through_nginx(nginx: str) -> None:
    with CostOpsClient(base_url=f"grpc://{nginx}") as client:
        receipt = client.usage.submit(
            organization_id=f"org-{uuid7()}", provider="openai", model_id="gpt-4o", input_tokens=1000
        )
        assert str(receipt.estimated_cost) == "0.0025"
        with pytest.raises(ValidationError) as caught:
            client.costs.get(group_by="colour")
        assert caught.value.violations
        assert client.ready().status == "healthy"
