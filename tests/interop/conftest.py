"""Real peers: what other people's generators make of the same .proto files, in processes of their own.

It can't be in this process: google's runtime has one pool of descriptors, and other tests need it clean.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import files
from pathlib import Path

import pytest

from tests.waiting import MAX_WAIT

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).parent / "peers"

Peer = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with messages and stubs of grpcio and grpclib."""
    target = tmp_path_factory.mktemp("generated")
    [annotations] = [
        file for file in files("googleapis-common-protos") or () if file.match("google/api/http.proto")
    ]
    common = Path(str(annotations.locate())).parents[2]
    sources = sorted(
        str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto/llm_cost_ops/v1").glob("*.proto")
    )
    plugin = Path(sys.executable).with_name("protoc-gen-grpclib_python")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"-I{common}"]
    command += [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "grpclib_python")]
    subprocess.run(
        [*command, f"--plugin=protoc-gen-grpclib_python={plugin}", *sources], check=True, cwd=target
    )
    for folder in ("llm_cost_ops", "llm_cost_ops/v1"):
        (target / folder / "__init__.py").touch()
    return target


@pytest.fixture(scope="session")
def environment(generated: Path) -> dict[str, str]:
    # Before the package itself on the path, whose name the generated one shares.
    return {**os.environ, "PYTHONPATH": str(generated), "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}


@pytest.fixture(scope="session")
def peer(environment: dict[str, str]) -> Peer:
    """Runs a peer that serves; gives the address that it prints."""

    @contextmanager
    def run(script: str, *arguments: str) -> Iterator[str]:
        command = [sys.executable, str(PEERS / script), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            assert address, f"{script} did not start"
            yield address
        finally:
            process.kill()
            process.stdout.close()
            process.wait(MAX_WAIT)

    return run
