"""The server's metrics at /metrics, in the text format of Prometheus.

They are written here, and not by prometheus_client: that is three times as much as the format needs, and the
server would need one library more. The tests read what is written with its parser.
"""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from llm_cost_ops._gen.messages import (
    BatchReceipt,
    BatchSubmitUsageResponse,
    StreamUsageResponse,
    SubmitStatus,
)
from llm_cost_ops._gen.methods import BATCH_SUBMIT_USAGE, GET_READINESS, SUBMIT_USAGE
from llm_cost_ops.ledger import Filter, Ledger
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.rpc.runtime import AsyncRuntime, Runtime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.server.admission import Admission
from llm_cost_ops.server.calls import ServedCall

__all__ = ["BUCKETS", "FAMILIES", "Family", "Metrics"]

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latencies' histogram, in seconds."""

Labels = tuple[str, ...]
Sample = tuple[str, Labels, Labels, float]


class Family(NamedTuple):
    """A metric: its kind is counter, gauge or histogram, and `help` says what it is, with its unit."""

    name: str
    kind: str
    labels: Labels
    help: str


FAMILIES = (
    Family(
        "llm_cost_ops_calls_total",
        "counter",
        ("transport", "method", "status"),
        "Calls answered. status is the HTTP status (499: the client went away) or the name of gRPC's; method "
        "is pages for the dashboard, the reference and /metrics, and other for a path that is none.",
    ),
    Family(
        "llm_cost_ops_call_seconds",
        "histogram",
        ("transport", "method"),
        "Seconds from the head of a request to the end of its answer.",
    ),
    Family(
        "llm_cost_ops_received_bytes_total", "counter", ("transport",), "Bytes of the bodies of requests."
    ),
    Family("llm_cost_ops_sent_bytes_total", "counter", ("transport",), "Bytes of the bodies of answers."),
    Family(
        "llm_cost_ops_refusals_total",
        "counter",
        ("reason",),
        "Calls refused: overloaded (too many in flight), unauthenticated (no valid key), permission_denied "
        "(a key that may not).",
    ),
    Family("llm_cost_ops_calls_in_flight", "gauge", (), "Calls that are being worked on."),
    Family("llm_cost_ops_calls_waiting", "gauge", (), "Calls that wait for room, for a second at most."),
    Family(
        "llm_cost_ops_records_total",
        "counter",
        ("status",),
        "Records that clients sent, by what became of them: created, duplicate, conflict or invalid.",
    ),
    Family("llm_cost_ops_commits_total", "counter", (), "Transactions that this process committed."),
    Family("llm_cost_ops_writes_queued", "gauge", (), "Writes that wait for a commit."),
    Family(
        "llm_cost_ops_unfolded_rows",
        "gauge",
        (),
        "Rows that are not in the kept sums yet, so that queries add them up: the fold lag.",
    ),
    Family("llm_cost_ops_database_bytes", "gauge", (), "Size of the database."),
    Family(
        "llm_cost_ops_ledger_requests",
        "gauge",
        ("status",),
        "Requests in the ledger by the status of their cost, whoever recorded them.",
    ),
    Family(
        "llm_cost_ops_unpriced_share",
        "gauge",
        (),
        "The part of the requests in the ledger that has no price, from 0 to 1.",
    ),
    Family(
        "llm_cost_ops_ledger_up", "gauge", (), "1 when the ledger answered; else its figures are left out."
    ),
    Family("process_start_time_seconds", "gauge", (), "When the process began, in seconds since 1970."),
    Family("process_cpu_seconds_total", "counter", (), "Seconds of computing time of the process."),
    Family("process_resident_memory_bytes", "gauge", (), "Memory of the process, where /proc tells it."),
)
"""Every metric, in the order in which they are written."""

_REASONS = {
    "401": "unauthenticated",
    "UNAUTHENTICATED": "unauthenticated",
    "403": "permission_denied",
    "PERMISSION_DENIED": "permission_denied",
}
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _process_start() -> float:
    try:
        # In ticks since the machine began; its name, in parentheses, may hold anything.
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.time() - time.process_time()


_STARTED = _process_start()
# A scrape every few seconds by several readers asks the ledger once.
_FRESH = 5.0
_TIMEOUT = 5.0


class _Latencies:
    """A histogram: how many calls took up to each bound, and their seconds together."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds

    def samples(self, names: Labels, values: Labels) -> Iterator[Sample]:
        total = 0
        for bound, count in zip((*map(repr, BUCKETS), "+Inf"), self.counts, strict=True):
            total += count
            yield "_bucket", (*names, "le"), (*values, bound), total
        yield "_sum", names, values, self.seconds
        yield "_count", names, values, total


class Metrics:
    """Counts calls and records, and gives all metrics as text. For use in one event loop.

    `observe` gets the calls of every listener. As the innermost interceptor of the service it sees what
    became of records.
    """

    def __init__(self, ledger: Ledger, admission: Admission, runtime: Runtime | None = None) -> None:
        self._ledger = ledger
        self._admission = admission
        self._runtime = runtime or AsyncRuntime()
        self._calls: Counter[Labels] = Counter()
        self._latencies: dict[Labels, _Latencies] = {}
        self._bytes: dict[str, Counter[Labels]] = {"received": Counter(), "sent": Counter()}
        self._refusals: Counter[str] = Counter()
        self._records: Counter[str] = Counter()
        self._asking = asyncio.Lock()
        self._asked = float("-inf")
        self._of_ledger: dict[str, list[tuple[Labels, float]]] = {}

    def observe(self, call: ServedCall) -> None:
        """Count a call."""
        series = (call.transport, call.method)
        self._calls[*series, call.status] += 1
        latencies = self._latencies.get(series)
        if latencies is None:
            latencies = self._latencies[series] = _Latencies()
        latencies.add(call.seconds)
        self._bytes["received"][call.transport,] += call.bytes_received
        self._bytes["sent"][call.transport,] += call.bytes_sent
        reason = _REASONS.get(call.status)
        if reason is not None:
            self._refusals[reason] += 1

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        path = context.method.path
        if path not in _SUBMITS:
            return await continuation(request, context)
        try:
            response = await continuation(request, context)
        except RpcError as error:
            outcome = _FAILED.get(error.code)
            if outcome is not None and path == SUBMIT_USAGE.path:
                self._records[outcome] += 1
            raise
        self._records.update(_SUBMITS[path](response))
        return response

    async def intercept_unary_stream(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        created = duplicates = 0
        async with aclosing(continuation(request, context)) as messages:
            async for message in messages:
                if isinstance(message, StreamUsageResponse):
                    # Counts are from the start of the stream, problems since the message before.
                    self._records["created"] += message.created - created
                    self._records["duplicate"] += message.duplicates - duplicates
                    created, duplicates = message.created, message.duplicates
                    self._records.update(_outcome(problem.status) for problem in message.problems)
                yield message

    intercept_stream_stream = intercept_unary_stream

    async def text(self) -> bytes:
        """All metrics in the text format of Prometheus; those of the ledger are at most five seconds old."""
        async with self._asking:
            if self._runtime.monotonic() - self._asked >= _FRESH:
                self._of_ledger = await self._ask_ledger()
                self._asked = self._runtime.monotonic()
        found = self._samples()
        lines: list[str] = []
        for family in FAMILIES:
            samples = list(found.get(family.name, ()))
            if samples:
                lines += (f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}")
                lines += (_line(family.name, sample) for sample in samples)
        return ("\n".join(lines) + "\n").encode()

    def _samples(self) -> Mapping[str, Iterable[Sample]]:
        admission = self._admission
        refusals = {**dict.fromkeys(("unauthenticated", "permission_denied"), 0), **self._refusals}
        records = {**dict.fromkeys(("created", "duplicate", "conflict", "invalid"), 0), **self._records}
        values: dict[str, Iterable[tuple[Labels, float]]] = {
            "llm_cost_ops_calls_total": sorted(self._calls.items()),
            "llm_cost_ops_received_bytes_total": self._bytes["received"].items(),
            "llm_cost_ops_sent_bytes_total": self._bytes["sent"].items(),
            "llm_cost_ops_refusals_total": [
                (("overloaded",), admission.refused),
                *(((reason,), count) for reason, count in refusals.items()),
            ],
            "llm_cost_ops_calls_in_flight": [((), admission.in_flight)],
            "llm_cost_ops_calls_waiting": [((), admission.waiting)],
            "llm_cost_ops_records_total": [((outcome,), count) for outcome, count in records.items()],
            **self._of_ledger,
            **_of_process(),
        }
        labels = {family.name: family.labels for family in FAMILIES}
        samples: dict[str, Iterable[Sample]] = {
            name: [("", labels[name], series, value) for series, value in found]
            for name, found in values.items()
        }
        histogram = "llm_cost_ops_call_seconds"
        samples[histogram] = [
            sample
            for series, latencies in sorted(self._latencies.items())
            for sample in latencies.samples(labels[histogram], series)
        ]
        return samples

    async def _ask_ledger(self) -> dict[str, list[tuple[Labels, float]]]:
        runtime = self._runtime
        context = CallContext(GET_READINESS, runtime, Metadata(), runtime.monotonic() + _TIMEOUT)
        try:
            figures = await self._ledger.figures(context)
            sums = await self._ledger.sums.summarize(Filter(), ("status",), None, context)
        except RpcError:
            return {"llm_cost_ops_ledger_up": [((), 0)]}
        requests: Counter[str] = Counter()
        unpriced = 0
        for (status,), _, amounts in sums:
            requests[status] += amounts.requests
            unpriced += amounts.unpriced_requests
        total = requests.total()
        return {
            "llm_cost_ops_commits_total": [((), figures.commits)],
            "llm_cost_ops_writes_queued": [((), figures.queued)],
            "llm_cost_ops_unfolded_rows": [((), figures.unfolded_rows)],
            "llm_cost_ops_database_bytes": [((), figures.bytes)],
            "llm_cost_ops_ledger_requests": [
                ((status,), count) for status, count in sorted(requests.items())
            ],
            "llm_cost_ops_unpriced_share": [((), unpriced / total if total else 0)],
            "llm_cost_ops_ledger_up": [((), 1)],
        }


def _outcome(status: SubmitStatus) -> str:
    return status.name.lower()


def _of_batch(response: BatchSubmitUsageResponse) -> dict[str, int]:
    receipt = response.data or BatchReceipt()
    return {
        "created": receipt.created,
        "duplicate": receipt.duplicates,
        "conflict": receipt.conflicts,
        "invalid": receipt.invalid,
    }


_SUBMITS: dict[str, Callable[[Any], dict[str, int]]] = {
    SUBMIT_USAGE.path: lambda response: {"duplicate" if response.data.duplicate else "created": 1},
    BATCH_SUBMIT_USAGE.path: _of_batch,
}
_FAILED = {StatusCode.ALREADY_EXISTS: "conflict", StatusCode.INVALID_ARGUMENT: "invalid"}


def _of_process() -> dict[str, list[tuple[Labels, float]]]:
    found: dict[str, list[tuple[Labels, float]]] = {
        "process_start_time_seconds": [((), _STARTED)],
        "process_cpu_seconds_total": [((), time.process_time())],
    }
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
        found["process_resident_memory_bytes"] = [((), pages * _PAGE)]
    return found


def _line(name: str, sample: Sample) -> str:
    suffix, names, values, value = sample
    pairs = ",".join(f'{label}="{_escaped(text)}"' for label, text in zip(names, values, strict=True))
    return f"{name}{suffix}{f'{{{pairs}}}' if pairs else ''} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
