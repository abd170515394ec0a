"""What does a call cost over each transport, and how much of it is ours?

Our three transports beside plain httpx, grpcio and connectrpc: the same SubmitUsage and GetCostSummary
against one server process, in one run, taking turns. Each client is a process of its own, so that its CPU
is counted alone; the embedded engine's includes the engine and the file, which the others leave to the
server. Figures are medians over the rounds. "bare" is the library alone: ready bytes in, answers unread.
Bare grpclib sends the deadline and the idempotency key that ours sends, so that the server does the same.
The targets: at most 15 % over it, and 35 % where the sync client crosses to a thread for gRPC.
Run: python benchmarks/bench_transports.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.conformance.clients import running_server

ROOT = Path(__file__).resolve().parents[1]

CALLERS = (1, 8, 64)
METHODS = ("SubmitUsage", "GetCostSummary")
NAMES = {
    "embedded": "ours, embedded",
    "http": "ours, HTTP",
    "httpx": "httpx",
    "httpx, bare": "httpx, bare",
    "grpc": "ours, gRPC",
    "grpcio": "grpcio",
    "connectrpc": "connectrpc",
    "grpclib, bare": "grpclib, bare",
}
# Ours, the bare library, and the most that ours may cost over it, by colour.
OVERHEADS = (("http", "httpx, bare", "sync", 15), ("http", "httpx, bare", "async", 15))
OVERHEADS += (("grpc", "grpclib, bare", "sync", 35), ("grpc", "grpclib, bare", "async", 15))

Cell = tuple[str, str, str, int]  # kind, colour, method, callers


class Round(NamedTuple):
    """Calls a second, and µs of CPU of the client per call."""

    rate: float
    cpu: float


class Caller:
    """A process that makes calls when it is told to."""

    def __init__(self, script: str, kind: str, url: str, environment: dict[str, str]) -> None:
        command = [sys.executable, str(ROOT / "benchmarks/callers" / script), kind, url]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asks, self._tells = self._process.stdin, self._process.stdout
        self.can: dict[str, list[str]] = self._told()

    def _told(self) -> Any:
        line = self._tells.readline()
        if not line:
            assert self._process.stderr is not None
            raise RuntimeError(self._process.stderr.read().strip().rpartition("\n")[2])
        return json.loads(line)

    def round(self, colour: str, method: str, callers: int, seconds: float) -> Round:
        asked = {"colour": colour, "method": method, "callers": callers, "seconds": seconds}
        self._asks.write(json.dumps(asked) + "\n")
        self._asks.flush()
        told = self._told()
        return Round(told["calls"] / told["wall"], told["cpu"] / told["calls"] * 1e6)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def generate(target: Path) -> dict[str, str]:
    """Let google's compiler write its classes into a folder; the environment in which they are found."""
    [annotations] = [
        file for file in files("googleapis-common-protos") or () if file.match("google/api/http.proto")
    ]
    common = Path(str(annotations.locate())).parents[2]
    sources = sorted(str(path) for path in (ROOT / "proto/llm_cost_ops/v1").glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"-I{common}"]
    subprocess.run([*command, f"--python_out={target}", f"--grpc_python_out={target}", *sources], check=True)
    for folder in ("llm_cost_ops", "llm_cost_ops/v1"):
        (target / folder / "__init__.py").touch()
    return {**os.environ, "PYTHONPATH": str(target)}


@contextlib.contextmanager
def callers(folder: Path, urls: dict[str, str]) -> Iterator[dict[str, Caller]]:
    """The clients that are installed, by kind; it says which are not."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    (folder / "generated").mkdir()
    theirs = generate(folder / "generated")
    embedded = f"sqlite:///{folder / 'embedded.db'}?durability=process"
    found: dict[str, Caller] = {}
    with contextlib.ExitStack() as stack:
        for kind, shown in NAMES.items():
            script = "theirs.py" if kind in {"grpcio", "connectrpc"} else "ours.py"
            url = embedded if kind == "embedded" else urls["http" if kind.startswith("http") else "grpc"]
            try:
                found[kind] = Caller(script, kind, url, theirs if script == "theirs.py" else environment)
            except RuntimeError as error:
                print(f"{shown} is left out: {error}")
            else:
                stack.callback(found[kind].end)
        yield found


def measure(found: dict[str, Caller], rounds: int, seconds: float) -> dict[Cell, list[Round]]:
    """Every cell `rounds` times, the clients taking turns; the first time does not count."""
    measured: dict[Cell, list[Round]] = {}
    for method in METHODS:
        for count in CALLERS:
            for turn in range(rounds + 1):
                for colour in ("sync", "async"):
                    for kind, caller in found.items():
                        if not caller.can[colour]:
                            continue
                        told = caller.round(colour, method, count, seconds if turn else min(seconds, 0.1))
                        if turn:
                            measured.setdefault((kind, colour, method, count), []).append(told)
    return measured


def show(measured: dict[Cell, list[Round]]) -> None:
    for method in METHODS:
        for colour in ("sync", "async"):
            print(f"\n{method}, {colour}")
            heads = "".join(f"{f'{count} callers':>27}" for count in CALLERS)
            print(f"{'':<17}{heads}\n{'':<17}" + f"{'calls/s':>12}{'CPU µs/call':>15}" * len(CALLERS))
            for kind, name in NAMES.items():
                line = ""
                for count in CALLERS:
                    told = measured.get((kind, colour, method, count))
                    if told:
                        rate, cpu = (median(one[part] for one in told) for part in (0, 1))
                        line += f"{rate:>12,.0f}{cpu:>15,.0f}"
                if line:
                    print(f"{name:<17}{line}")


def show_overheads(measured: dict[Cell, list[Round]]) -> None:
    """Ours against the bare library, by rounds that were neighbours."""
    print("\nOver the bare library, in % of it: time of a call, and CPU of the client")
    heads = "".join(f"{f'{count} callers':>20}" for count in CALLERS)
    print(f"{'':<42}{heads}{'target':>12}")
    for kind, bare, colour, most in OVERHEADS:
        for method in METHODS:
            line = f"{NAMES[kind] + ', ' + colour + ', ' + method:<42}"
            for count in CALLERS:
                own = measured.get((kind, colour, method, count), [])
                # grpclib has no sync client: its async one is the measure of both.
                rival = "async" if bare == "grpclib, bare" else colour
                other = measured.get((bare, rival, method, count), [])
                pairs = list(zip(own, other, strict=False))
                if pairs:
                    time = median(theirs.rate / mine.rate for mine, theirs in pairs) - 1
                    cpu = median(mine.cpu / theirs.cpu for mine, theirs in pairs) - 1
                    line += f"{100 * time:>+10.0f}{100 * cpu:>+10.0f}"
            print(f"{line}{f'<= {most}':>12}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 s instead of about 3 minutes")
    rounds, seconds = (1, 0.1) if parser.parse_args().quick else (5, 0.3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listen = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--durability", "process")
        with running_server(folder, *listen) as urls, callers(folder, urls) as found:
            measured = measure(found, rounds, seconds)
    print(f"Medians of {rounds} rounds of {seconds} s, taking turns, {os.cpu_count()} processors.")
    show(measured)
    show_overheads(measured)


if __name__ == "__main__":
    main()
