"""What does a server get done when more is asked of it than it takes, and does health answer?

A server of its own process, keys required, fsync on, `--max-calls LIMIT`. Callers submit one record at a
time over HTTP on a connection each; the peak is what LIMIT of them get done, measured before and after. Then
2, 5 and 20 times as many call: "patient" ones wait for as long as Retry-After says, "stubborn" ones try again
at once, and "early" is the mean time until a refusal. Target: 90 % of the peak at 5 times the callers. They
share the machine with the server, and with whatever else runs: "by CPU time" relates the calls that were done
to the time that the server computed, and says what refusing costs. A refusal costs what reading and answering
a request costs, nearly as much as a short call: that is why calls wait for room, for up to a second, before
they are refused.
Run: python benchmarks/bench_overload.py [--seconds 5] [--limit 64]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import msgspec

from llm_cost_ops.rpc.context import uuid7


class Told(NamedTuple):
    done: int
    refused: int
    failed: int
    p50: float
    p99: float
    early: float
    health_p99: float
    cpu: float = 0.0


class Caller:
    """One connection, kept alive."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key
        self._streams: Any = None

    async def call(self, verb: str, path: str, body: bytes = b"") -> tuple[int, float]:
        """Status and Retry-After."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = f"{verb} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self._key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in answer.split("\r\n")[1:] if ": " in line)
        await reader.readexactly(int(fields["content-length"]))
        pause = float(fields.get("retry-after-ms", 0)) / 1000 or float(fields.get("retry-after", 0))
        return int(answer.split(" ", 2)[1]), pause


async def measure(port: int, key: str, callers: int, seconds: float, *, patient: bool) -> Told:
    answered: list[float] = []
    refusals: list[float] = []
    health: list[float] = []
    failed = 0
    end = time.monotonic() + seconds

    async def submit() -> None:
        nonlocal failed
        caller = Caller(port, key)
        while time.monotonic() < end:
            record = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o"}
            body = msgspec.json.encode({**record, "input_tokens": 1000, "idempotency_key": uuid7()})
            started = time.monotonic()
            status, pause = await caller.call("POST", "/api/v1/usage", body)
            took = time.monotonic() - started
            if status == 201:
                answered.append(took)
            elif status == 503:
                refusals.append(took)
                await asyncio.sleep(pause if patient else 0)
            else:
                failed += 1

    async def look() -> None:
        caller = Caller(port, key)
        while time.monotonic() < end:
            started = time.monotonic()
            status, _ = await caller.call("GET", "/ready")
            assert status == 200
            health.append(time.monotonic() - started)
            await asyncio.sleep(0.02)

    await asyncio.gather(look(), *(submit() for _ in range(callers)))
    early = sum(refusals) / len(refusals) if refusals else 0.0
    p50, p99, health_p99 = percentile(answered, 50), percentile(answered, 99), percentile(health, 99)
    return Told(len(answered), len(refusals), failed, p50, p99, early, health_p99)


def percentile(seconds: list[float], which: int) -> float:
    """NaN where a machine was too busy for two answers."""
    return quantiles(seconds, n=100)[which - 1] if len(seconds) > 1 else math.nan


def in_a_process(port: int, key: str, callers: int, seconds: float, patient: bool, answers: Any) -> None:
    answers.put(asyncio.run(measure(port, key, callers, seconds, patient=patient)))


class Bench(NamedTuple):
    """A server, and how it is measured."""

    pid: int
    port: int
    key: str
    seconds: float

    def run(self, callers: int, *, patient: bool = True) -> Told:
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        arguments = (self.port, self.key, callers, self.seconds, patient, answers)
        process = context.Process(target=in_a_process, args=arguments)
        before = self.cpu()
        process.start()
        told: Told = answers.get()
        process.join()
        return told._replace(cpu=self.cpu() - before)

    def cpu(self) -> float:
        """Seconds that the server has computed."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def show(self, name: str, told: Told, peak: float, peak_by_cpu: float) -> None:
        goodput = told.done / self.seconds
        print(
            f"{name:<24} {goodput:8,.0f}/s {100 * goodput / peak:6.1f} %"
            f" {100 * told.done / told.cpu / peak_by_cpu:11.1f} % {told.refused / self.seconds:10,.0f}/s"
            f" {told.p50 * 1e3:9.1f} {told.p99 * 1e3:9.1f} {told.early * 1e3:9.1f}"
            f" {told.health_p99 * 1e3:12.1f} {told.failed:8}"
        )

    def compare(self, limit: int) -> None:
        self._replace(seconds=1.0).run(limit)
        print(
            f"{'callers':<24} {'goodput':>10} {'of peak':>8} {'by CPU time':>13} {'refused':>12}"
            f" {'p50 ms':>9} {'p99 ms':>9} {'early':>9} {'ready p99 ms':>12} {'failed':>8}"
        )
        before = self.run(limit)
        self.show(f"{limit}", before, before.done / self.seconds, before.done / before.cpu)
        for times in (2, 5, 20):
            told = {patient: self.run(times * limit, patient=patient) for patient in (True, False)}
            after = self.run(limit)
            both = before.done + after.done
            peaks = both / 2 / self.seconds, both / (before.cpu + after.cpu)
            for patient, one in told.items():
                self.show(f"{times} x {limit}, {'patient' if patient else 'stubborn'}", one, *peaks)
            self.show(f"{limit}, afterwards", after, *peaks)
            before = after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--limit", type=int, default=64, help="the server's --max-calls")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = str(Path(folder) / "costs.db")
        command = [sys.executable, "-m", "llm_cost_ops.cli"]
        make = [*command, "keys", "create", "--organization", "acme", "--db", database]
        key = subprocess.run(make, capture_output=True, text=True, check=True).stdout.strip()
        serve = [
            *command,
            "serve",
            "--http",
            "127.0.0.1:0",
            "--db",
            database,
            "--max-calls",
            str(options.limit),
        ]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            line = next(line for line in server.stdout if "listening" in line)
            port = int(line.split("127.0.0.1:")[1].split(",")[0])
            try:
                Bench(server.pid, port, key, options.seconds).compare(options.limit)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
