"""A server that can't have its ledger does not start."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.waiting import MAX_WAIT


def serve(database):
    command = [sys.executable, "-m", "llm_cost_ops.cli", "serve", "--db", database, "--http", "127.0.0.1:0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * MAX_WAIT, check=False)


@pytest.mark.parametrize(
    "database", ["{folder}/none/costs.db", "{folder}", "postgres://x/y", "sqlite://", "/dev/null"]
)
def test_a_server_without_its_ledger_does_not_start(tmp_path, database):
    done = serve(database.format(folder=tmp_path))
    assert done.returncode in {1, 2}
    assert "listening" not in done.stdout
    assert done.stderr.startswith("llm-cost-ops: ")
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_database_is_not_served(tmp_path):
    path = tmp_path / "costs.db"
    path.write_text("this is no database, " * 200, encoding="ascii")
    done = serve(str(path))
    assert done.returncode in {1, 2}
    assert "listening" not in done.stdout


@pytest.mark.parametrize("option", ["--http", "--grpc"])
def test_a_port_that_is_taken_is_named(tmp_path, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "llm_cost_ops.cli", "serve", "--db", str(tmp_path / "c.db")]
        done = subprocess.run(
            [*command, option, address], capture_output=True, text=True, timeout=2 * MAX_WAIT, check=False
        )
    assert done.returncode == 2
    assert f"llm-cost-ops: {address}: can't listen there: " in done.stderr


def test_a_host_that_is_not_known_is_named(tmp_path):
    command = [sys.executable, "-m", "llm_cost_ops.cli", "serve", "--db", str(tmp_path / "c.db")]
    options = ["--require-keys", "--http", "nowhere.invalid:1"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=2 * MAX_WAIT, check=False
    )
    assert done.returncode == 2
    assert "llm-cost-ops: nowhere.invalid:1: can't listen there: " in done.stderr
