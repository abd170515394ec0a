"""What does record() cost the caller's thread, beside queue.Queue.put of the same run?

python benchmarks/bench_recorder.py [thousands of records]
"""

from __future__ import annotations

import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from llm_cost_ops import ClientConfig, CostOpsClient, RecorderConfig
from llm_cost_ops._gen.messages import BatchReceipt, SubmitResult, SubmitStatus, UsageRecord
from llm_cost_ops.client.recorder import Recorder

FIELDS: dict[str, Any] = {
    "organization_id": "acme",
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 500,
}
ROUNDS = 7


class Sink:
    """Takes every batch at once."""

    def send(self, records: list[UsageRecord], timeout: float | None = None) -> BatchReceipt:
        return BatchReceipt(results=[SubmitResult(status=SubmitStatus.CREATED) for _ in records])

    def close(self) -> None:
        pass


def microseconds(call: Callable[[], object], count: int) -> float:
    """The CPU time of the caller's thread for one call."""
    began = time.thread_time()
    for _ in range(count):
        call()
    return (time.thread_time() - began) / count * 1e6


def best(
    name: str, call: Callable[[], object], rest: Callable[[], object], count: int, baseline: float
) -> float:
    """Print the least of several rounds, and its ratio to the baseline; `rest` runs between rounds."""
    found = []
    for _ in range(ROUNDS):
        found.append(microseconds(call, count))
        rest()
    least = min(found)
    print(f"{name:46} {least:6.2f} us   {least / (baseline or least):5.2f} of queue.Queue.put")
    return least


def main() -> None:
    """Print a line per way to record."""
    count = int(sys.argv[1] if len(sys.argv) > 1 else 5) * 1000
    waiting: queue.Queue[object] = queue.Queue()

    def empty() -> None:
        while not waiting.empty():
            waiting.get()

    baseline = best("queue.Queue.put", lambda: waiting.put(FIELDS), empty, count, 0)
    held = threading.Event()

    class Held(Sink):
        def send(self, records: list[UsageRecord], timeout: float | None = None) -> BatchReceipt:
            held.wait()
            return super().send(records)

    def built(_: UsageRecord | None, fields: dict[str, Any], __: object) -> UsageRecord:
        return UsageRecord(**fields)

    def drained(recorder: Recorder) -> Callable[[], None]:
        def rest() -> None:
            held.set()
            recorder.flush(60)
            held.clear()

        return rest

    recorder = Recorder(RecorderConfig(max_records=10 * count, shutdown_timeout=0), built, Held)
    name = "record(), the sender waits for a server"
    best(name, lambda: recorder.record(None, FIELDS), drained(recorder), count, baseline)
    held.set()
    recorder.close()
    held.clear()
    with tempfile.TemporaryDirectory() as folder:
        for durability, few in (("process", count), ("disk", 50)):
            config = RecorderConfig(spool=f"{folder}/{durability}", durability=durability, shutdown_timeout=0)
            spooled = Recorder(config, built, Held)
            name = f"record() into a spool, durability={durability}"
            best(name, lambda spooled=spooled: spooled.record(None, FIELDS), drained(spooled), few, baseline)
            held.set()
            spooled.close()
            held.clear()
        # Port 9 answers nobody: the records stay in the spool.
        into = RecorderConfig(spool=f"{folder}/client", shutdown_timeout=0)
        own = ClientConfig(base_url="http://127.0.0.1:9", organization_id="acme", recorder=into)
        with CostOpsClient(config=own) as client:
            usage, fields = client.usage, {**FIELDS}
            del fields["organization_id"]
            name = "client.usage.record() into a spool"
            best(name, lambda: usage.record(**fields), lambda: None, count, baseline)
    config = ClientConfig(base_url="sqlite://", recorder=RecorderConfig(max_records=10 * count))
    with CostOpsClient(config=config) as client:
        usage = client.usage
        name = "client.usage.{}() on an embedded ledger"
        best(name.format("record"), lambda: usage.record(**FIELDS), lambda: client.flush(60), count, baseline)
        best(name.format("submit"), lambda: usage.submit(**FIELDS), lambda: None, 500, baseline)


if __name__ == "__main__":
    main()
