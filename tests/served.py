"""Servers of tests: `llm-cost-ops serve` as a process of its own, and those of the standard library."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import HTTPServer
from pathlib import Path
from typing import Any, TypeVar

from tests.ports import free_port
from tests.waiting import MAX_WAIT

AnyServer = TypeVar("AnyServer", bound=HTTPServer)


@contextlib.contextmanager
def serving(server: AnyServer) -> Iterator[AnyServer]:
    """A server that answers in a thread of its own until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Served:
    """A server that runs: its addresses, and all that it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.printed: list[str] = []
        self._said = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (process.stdout, process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            with self._said:
                self.printed.append(line)
                self._said.notify_all()
        with self._said:
            self._said.notify_all()

    @property
    def text(self) -> str:
        return "".join(self.printed)

    @property
    def urls(self) -> list[str]:
        return re.findall(r"listening on ([^ ,]+)", self.text)

    def wait_for(self, pattern: str, seconds: float = MAX_WAIT) -> re.Match[str]:
        """Wait until something was printed that a pattern finds."""
        with self._said:
            self._said.wait_for(
                lambda: re.search(pattern, self.text) or self.process.poll() is not None, seconds
            )
        found = re.search(pattern, self.text)
        assert found is not None, self.text
        return found

    def end(self) -> int:
        """Stop the server as systemd does; its exit status."""
        self.process.terminate()
        status = self.process.wait(MAX_WAIT)
        for reader in self._readers:
            reader.join(MAX_WAIT)
        return status


@contextlib.contextmanager
def served(
    *arguments: str, listeners: int = 1, environment: Mapping[str, str] | None = None, **options: Any
) -> Iterator[Served]:
    """A server with these options of `serve`, once all its listeners accept."""
    command: Sequence[str] = [sys.executable, "-m", "llm_cost_ops.cli", "serve", *arguments]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=None if environment is None else dict(environment),
        **options,
    ) as process:
        server = Served(process)
        try:
            server.wait_for(r"(?s)" + r"listening on .*" * listeners)
            yield server
        finally:
            server.end()


class Restarted:
    """A server process on two fixed ports and one file; it may be killed and started again."""

    def __init__(self, folder: Path, durability: str = "process") -> None:
        self.ports = {"http": free_port(), "grpc": free_port()}
        self._command = [sys.executable, "-m", "llm_cost_ops.cli", "serve", "--db", str(folder / "ledger.db")]
        for transport, port in self.ports.items():
            self._command += [f"--{transport}", f"127.0.0.1:{port}"]
        self._command += ["--durability", durability]
        self.start()

    def start(self) -> None:
        """Serve, again after `kill`, once both ports accept."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        seen = ""
        for line in self._process.stdout:
            seen += line
            if "http://" in seen and "grpc://" in seen:
                return
        raise RuntimeError(f"the server did not start: {self._process.wait(MAX_WAIT)}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it as kill -9 does, or by another signal."""
        self._process.send_signal(number)
        self._process.wait(MAX_WAIT)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def url(self, transport: str) -> str:
        """Its URL, for the client of "http" or "grpc"."""
        return f"{transport}://127.0.0.1:{self.ports[transport]}"
