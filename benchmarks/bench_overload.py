"""What does a server get done when more is asked of it than it takes, and does health answer?

A server of its own process, keys required, fsync on, `--max-calls LIMIT`. Callers submit one record at a
time over HTTP on a connection each; the peak is what LIMIT of them get done. Then 2 and 5 times as many
call: "patient" ones wait for as long as Retry-After says, "stubborn" ones try again at once, and "early" is
the mean time until a refusal. Target: 90 % of the peak. The callers share the machine with the server, and a
refusal costs it about what reading a request costs.
Run: python benchmarks/bench_overload.py [--seconds 5] [--limit 64]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import msgspec

from llm_cost_ops.wire.uuid7 import uuid7


class Told(NamedTuple):
    done: int
    refused: int
    failed: int
    p50: float
    p99: float
    early: float
    health_p99: float


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
    cuts = quantiles(answered, n=100)
    early = sum(refusals) / len(refusals) if refusals else 0.0
    return Told(len(answered), len(refusals), failed, cuts[49], cuts[98], early, quantiles(health, n=100)[98])


def in_a_process(port: int, key: str, callers: int, seconds: float, patient: bool, answers: Any) -> None:
    answers.put(asyncio.run(measure(port, key, callers, seconds, patient=patient)))


def run(port: int, key: str, callers: int, seconds: float, *, patient: bool) -> Told:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=in_a_process, args=(port, key, callers, seconds, patient, answers))
    process.start()
    told: Told = answers.get()
    process.join()
    return told


def show(name: str, told: Told, seconds: float, peak: float) -> float:
    goodput = told.done / seconds
    print(
        f"{name:<24} {goodput:8,.0f}/s {100 * goodput / (peak or goodput):6.1f} %"
        f" {told.refused / seconds:10,.0f}/s"
        f" {told.p50 * 1e3:9.1f} {told.p99 * 1e3:9.1f} {told.early * 1e3:9.1f} {told.health_p99 * 1e3:12.1f}"
        f" {told.failed:8}"
    )
    return goodput


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
                compare(port, key, options.limit, options.seconds)
            finally:
                server.terminate()


def compare(port: int, key: str, limit: int, seconds: float) -> None:
    run(port, key, limit, 1.0, patient=True)
    print(
        f"{'callers':<24} {'goodput':>10} {'of peak':>8} {'refused':>12} {'p50 ms':>9} {'p99 ms':>9}"
        f" {'early':>9} {'ready p99 ms':>12} {'failed':>8}"
    )
    peak = show(f"{limit}", run(port, key, limit, seconds, patient=True), seconds, 0.0)
    for times in (2, 5):
        for patient in (True, False):
            name = f"{times} x {limit}, {'patient' if patient else 'stubborn'}"
            show(name, run(port, key, times * limit, seconds, patient=patient), seconds, peak)
    show(f"{limit}, afterwards", run(port, key, limit, seconds, patient=True), seconds, peak)


if __name__ == "__main__":
    main()
