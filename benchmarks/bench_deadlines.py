"""What a call does when the peer misbehaves: the exception, the time against the deadline, the attempts.

Every fault over HTTP and gRPC, sync and async, with the retries that a client has by default. Prints the
exception, milliseconds over a deadline of 300 ms (below 0: the call gave up before it), the median and the
worst of the calls, and the attempts per call: as the client counted them, and on the wire (HTTP requests;
connections for gRPC, which carry several attempts, and which the client opens again by itself where nothing
of a request was taken). The aim: at most 50 ms over on an idle machine. Beside it, plain httpx with
timeout=0.3, which bounds each read and not the call; it is left alone after 3 s.
Run: python benchmarks/bench_deadlines.py [calls, 10 unless told]
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from llm_cost_ops import AsyncCostOpsClient, CostOpsClient, CostOpsError
from llm_cost_ops.types import UsageRecord
from tests import faulty_grpc_peers, faulty_peers
from tests.faulty_peers import FaultyPeer, full_backlog, never_reads, silent

DEADLINE = 0.3
CALLS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
SMALL = [UsageRecord(organization_id="org-1", provider="openai", model_id="gpt-4o", input_tokens=1)]
LARGE = [
    UsageRecord(organization_id="org-1", provider="openai", model_id="gpt-4o", tags=["t" * 250] * 64)
    for _ in range(500)
]

HTTP = {name: behave for name, (behave, _) in faulty_peers.BEHAVIOURS.items()}
GRPC = {name: behave for name, (behave, _) in faulty_grpc_peers.BEHAVIOURS.items()}


class Scene(NamedTuple):
    """A fault, and the peers that have it, by transport; None for a peer that never accepts."""

    name: str
    http: Callable[..., None] | None
    grpc: Callable[..., None] | None
    tls: bool = False
    large: bool = False


SCENES = [
    Scene("connect gets no answer", None, None),
    Scene("TLS handshake gets no answer", silent, silent, tls=True),
    Scene("request is never read (8 MB)", never_reads, never_reads, large=True),
    Scene("silent after the request", HTTP["silent"], GRPC["only_settings"]),
    Scene("headers drip; pings drip", HTTP["drips_headers"], GRPC["drips_pings"]),
    Scene("body drips; message drips", HTTP["drips_body"], GRPC["drips_message"]),
    Scene("half-closed; only headers", HTTP["half_closes"], GRPC["only_headers"]),
    Scene("reset before the request", HTTP["resets_at_once"], GRPC["resets_at_once"]),
    Scene("reset after the request", HTTP["resets_after_request"], GRPC["resets_after_request"]),
    Scene("closed after the request", HTTP["closes_after_request"], GRPC["closes_after_request"]),
    Scene("answer cut off", HTTP["truncates"], GRPC["closes_in_message"]),
    Scene("answer of another protocol", HTTP["speaks_no_http"], GRPC["speaks_http1"]),
    Scene("answer that is no message", HTTP["not_json"], GRPC["not_a_message"]),
    Scene("endless answer", HTTP["endless_body"], GRPC["endless_message"]),
]


class Told(NamedTuple):
    over: float
    raised: str
    attempts: int


@contextlib.contextmanager
def opened(behave: Callable[..., None] | None) -> Iterator[tuple[int, Callable[[], int]]]:
    """A port, and how many requests have come in there."""
    if behave is None:
        with full_backlog() as port:
            yield port, lambda: 0
        return
    with FaultyPeer(behave) as peer:
        yield peer.port, lambda: len(peer.requests) or peer.connections


def told(started: float, error: CostOpsError | None) -> Told:
    over = (time.perf_counter() - started - DEADLINE) * 1000
    return Told(over, type(error).__name__, getattr(error, "attempts", 1))


def sync_call(url: str, records: list[UsageRecord]) -> Told:
    with CostOpsClient(base_url=url, api_key="k", timeout=DEADLINE) as client:
        started = time.perf_counter()
        try:
            client.usage.submit_batch(records)
        except CostOpsError as error:
            return told(started, error)
        return told(started, None)


def async_call(url: str, records: list[UsageRecord]) -> Told:
    async def run() -> Told:
        async with AsyncCostOpsClient(base_url=url, api_key="k", timeout=DEADLINE) as client:
            started = time.perf_counter()
            try:
                await client.usage.submit_batch(records)
            except CostOpsError as error:
                return told(started, error)
            return told(started, None)

    return asyncio.run(run())


def httpx_call(url: str, records: list[UsageRecord]) -> float:
    client = httpx.Client(timeout=DEADLINE, trust_env=False)

    def run() -> None:
        with contextlib.suppress(httpx.HTTPError), client:
            client.post(url, content=b" " * 16_000 * len(records))

    thread = threading.Thread(target=run, daemon=True)
    started = time.perf_counter()
    thread.start()
    thread.join(3)
    return (time.perf_counter() - started - DEADLINE) * 1000


def show(scene: Scene, transport: str, colour: str, call: Callable[..., Told]) -> list[float]:
    records = LARGE if scene.large else SMALL
    behave = scene.http if transport == "http" else scene.grpc
    with opened(behave) as (port, requests):
        url = f"{transport}{'s' if scene.tls else ''}://localhost:{port}"
        if behave is None:
            url = url.replace("localhost", "127.0.0.1")
        seen = [call(url, records) for _ in range(CALLS)]
        on_wire = requests() / CALLS
        beside: list[Any] = []
        if transport == "http" and colour == "sync":
            beside.append(httpx_call(url, records))
    over = [one.over for one in seen]
    raised = " ".join(Counter(one.raised for one in seen))
    attempts = statistics.mean(one.attempts for one in seen)
    line = f"{scene.name:<29} {transport:<5}{colour:<6}{raised:<26}"
    line += f"{statistics.median(over):>9.1f}{max(over):>9.1f}{attempts:>10.1f}{on_wire:>9.1f}"
    print(line + "".join(f"{milliseconds:>9.0f}" for milliseconds in beside), flush=True)
    return over


def main() -> None:
    """Print the table."""
    threading.excepthook = lambda _: None  # a peer whose client went away has nothing to tell
    heads = f"{'exception':<26}{'ms over':>9}{'worst':>9}{'attempts':>10}{'on wire':>9}{'httpx':>9}"
    print(f"{'':<41}{heads}")
    over: list[float] = []
    for scene in SCENES:
        for transport in ("http", "grpc"):
            for colour, call in (("sync", sync_call), ("async", async_call)):
                over += show(scene, transport, colour, call)
    print(f"\nThe worst of {len(over)} calls: {max(over):+.1f} ms over the deadline.")


if __name__ == "__main__":
    main()
