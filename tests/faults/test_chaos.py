"""Recording clients with spools, and their server, are killed at random: what was recorded counts, and once.

LONG_TESTS=1 goes on for 100 seconds instead of 10. FAULTS_SEED repeats a run's moments and victims.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_cost_ops import ClientConfig, CostOpsClient, RecorderConfig
from tests.faults.recording_client import ORGANIZATION
from tests.served import Restarted
from tests.waiting import MAX_WAIT, until

SECONDS = 100 if "LONG_TESTS" in os.environ else 10
CLIENTS = [(transport, colour) for transport in ("http", "grpc") for colour in ("sync", "async")]


class Clients:
    """Processes that record, some with a spool of their own and some with one between them."""

    def __init__(self, server: Restarted, folder: Path) -> None:
        self._urls = {transport: server.url(transport) for transport in server.ports}
        self._folder = folder
        self._log = folder / "log"
        self._processes = [self._start(*kind) for kind in CLIENTS]
        self.killed = 0

    def _start(self, transport: str, colour: str) -> subprocess.Popen[bytes]:
        spool = self._folder / ("spool-of-async" if colour == "async" else f"spool-{transport}")
        command = [sys.executable, "-m", "tests.faults.recording_client", self._urls[transport]]
        return subprocess.Popen([*command, str(spool), str(self._log), colour], stderr=subprocess.DEVNULL)

    def kill_one(self, number: int) -> None:
        """Kill a process, and start one like it."""
        self._kill(self._processes[number])
        self._processes[number] = self._start(*CLIENTS[number])

    def kill_all(self) -> None:
        for process in self._processes:
            self._kill(process)

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        assert process.poll() is None, f"a client ended by itself: {process.returncode}"
        process.kill()
        process.wait(MAX_WAIT)
        self.killed += 1

    def left(self) -> int:
        """Deliver what lies in the spools, over the other transport; how many records that were."""
        found = 0
        for spool in sorted(self._folder.glob("spool-*")):
            url = self._urls["http" if "grpc" in spool.name else "grpc"]
            config = ClientConfig(base_url=url, recorder=RecorderConfig(spool=str(spool)))
            with CostOpsClient(config=config) as client:
                report = client.flush(2 * MAX_WAIT)
            assert (report.rejected_count, report.conflicts, report.dropped, report.spooled) == (0, 0, 0, 0)
            # One that was killed before it locked its next segment left a file with 8 bytes at most.
            rest = [path for path in spool.iterdir() if path.suffix != ".new" or path.stat().st_size > 8]
            assert rest == []
            found += report.delivered + report.duplicates
        return found

    def told(self, mark: str) -> set[str]:
        """The numbers behind a mark in the log; the last line of a process may be cut off."""
        lines = self._log.read_text(encoding="ascii").split("\n") if self._log.exists() else []
        return {line[1:] for line in lines if line.startswith(mark)}


@pytest.mark.slow
def test_what_was_recorded_counts_once(server: Restarted, tmp_path: Path) -> None:
    seed = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(1 << 32))
    chance = random.Random(seed)
    began, servers = time.monotonic(), 0
    clients = Clients(server, tmp_path)
    try:
        until(lambda: clients.told("="))
        # On a machine on which a client starts slowly, all lives are longer.
        pace, end = max(1.0, time.monotonic() - began), time.monotonic() + SECONDS
        for step in itertools.count():
            time.sleep(pace * chance.uniform(0.1, 1.0))
            clients.kill_one(chance.randrange(len(CLIENTS)))
            # Clients die while there is a server, and while there is none.
            if step % 3 == 1:
                server.kill()
                servers += 1
            elif step % 3 == 2:
                server.start()
                if (
                    time.monotonic() > end
                    and servers >= SECONDS / 10
                    and len(clients.told("=")) > 50 * SECONDS
                ):
                    break
    finally:
        clients.kill_all()
    left = clients.left()
    begun, returned = clients.told("+"), clients.told("=")
    with CostOpsClient(base_url=server.url("http")) as client:
        held = [record.session_id for record in client.usage.list(organization_id=ORGANIZATION)]
        total = client.costs.get(organization_id=ORGANIZATION).total_requests
    figures = f"{len(returned)} recorded, {len(held)} held, {left} of them from what the dead left"
    print(f"seed {seed}: killed {clients.killed} clients, {servers} servers; {figures}")  # noqa: T201  # the figures are what it is about
    assert clients.killed - len(CLIENTS) >= SECONDS / 4
    assert servers >= SECONDS / 10
    assert len(held) == len(set(held)) == total, "counted twice"
    assert returned <= set(held), "recorded and lost"
    assert set(held) <= begun, "never recorded"
    assert len(returned) > 50 * SECONDS
