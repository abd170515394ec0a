"""Clients that others wrote, against our server: directly, and through nginx."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient, ValidationError
from llm_cost_ops.rpc.ids import uuid7
from tests.conformance.clients import running_server
from tests.interop.conftest import PEERS


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, "--grpc", "127.0.0.1:0", "--durability", "process") as urls:
        yield urls["grpc"].removeprefix("grpc://")


@pytest.fixture(scope="module")
def nginx(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An nginx in front of the server; its address."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("nginx is not installed (Debian: apt install nginx-light)")
    folder = tmp_path_factory.mktemp("nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "nginx.conf").write_text(
        f"""daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
        events {{}}
        http {{
            access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
            fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
            server {{ listen 127.0.0.1:{port} http2; location / {{ grpc_pass grpc://{address}; }} }}
        }}"""
    )
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(params=["address", "nginx"])
def target(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def answers(script: str, target: str, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, str(Path(PEERS) / script), target, f"org-{uuid7()}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
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
