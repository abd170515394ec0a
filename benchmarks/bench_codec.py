"""What a record costs on its way to bytes and back, beside what it costs with other codecs.

Run: python benchmarks/bench_codec.py. A batch of 500 UsageRecords, 15 of 42 fields set. Every row is run in
turn, over and over, and its fastest run counts: a shared machine has slow moments. Prints microseconds of CPU
for a record, and the ratio to google's protobuf (upb, in C), which builds its objects from Python values and
serializes them, or parses them and reads the 15 fields back as Python values. The aim: at most 1.0 to encode
and 2.0 to decode.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from llm_cost_ops._gen.codecs import BATCH_SUBMIT_USAGE_REQUEST
from llm_cost_ops._gen.messages import BatchSubmitUsageRequest, Operation, UsageRecord
from tests.property.wire_oracles import better_class, google_class

RECORDS = 500
ROUNDS = 60
GOOGLE = "google protobuf"
NAME = "llm_cost_ops.v1.BatchSubmitUsageRequest"
START = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)


def values(index: int) -> dict[str, Any]:
    """The 15 fields of a record."""
    return {
        "idempotency_key": f"0190b6c0-5b1e-7c3a-9d2e-{index:012d}",
        "organization_id": "org-123",
        "provider": "openai",
        "model_id": "gpt-4o-2024-08-06",
        "input_tokens": 1200 + index,
        "output_tokens": 350 + index % 200,
        "total_tokens": 1550 + index + index % 200,
        "cached_tokens": 1024,
        "reasoning_tokens": 64,
        "timestamp": START + timedelta(seconds=index, microseconds=123456),
        "operation": Operation.CHAT,
        "project_id": "project-alpha",
        "user_id": f"user-{index % 50}",
        "labels": {"team": "search", "environment": "production"},
        "latency_ms": 840 + index,
    }


ROWS = [values(index) for index in range(RECORDS)]
NUMBERED = [{**row, "operation": 1} for row in ROWS]
BATCH = BatchSubmitUsageRequest(records=[UsageRecord(**row) for row in ROWS])
BYTES = BATCH_SUBMIT_USAGE_REQUEST.encode(BATCH)
TEXT = BATCH_SUBMIT_USAGE_REQUEST.encode_json(BATCH)
SPACED = json.dumps(json.loads(TEXT), sort_keys=True).encode()
Google = google_class(NAME)
Better = better_class(NAME)
BetterRecord = better_class("llm_cost_ops.v1.UsageRecord")
BETTER = [{f"f_{name}": value for name, value in row.items()} for row in NUMBERED]


def ours_from_values() -> bytes:
    batch = BatchSubmitUsageRequest(records=[UsageRecord(**row) for row in ROWS])
    return BATCH_SUBMIT_USAGE_REQUEST.encode(batch)


def google_encode() -> bytes:
    batch = Google()
    add = batch.records.add
    for row in NUMBERED:
        add(**row)
    return batch.SerializeToString()


def google_decode() -> None:
    for r in Google.FromString(BYTES).records:
        (
            *(r.idempotency_key, r.organization_id, r.provider, r.model_id, r.input_tokens, r.output_tokens),
            *(r.total_tokens, r.cached_tokens, r.reasoning_tokens, r.timestamp.ToDatetime(UTC), r.operation),
            *(r.project_id, r.user_id, dict(r.labels), r.latency_ms),
        )


def better_encode() -> bytes:
    return bytes(Better(f_records=[BetterRecord(**row) for row in BETTER]))


ENCODERS: dict[str, Callable[[], object]] = {
    "ours, structs to protobuf": lambda: BATCH_SUBMIT_USAGE_REQUEST.encode(BATCH),
    "ours, values to structs to protobuf": ours_from_values,
    "ours, structs to REST JSON": lambda: BATCH_SUBMIT_USAGE_REQUEST.encode_json(BATCH),
    "msgspec alone, structs to JSON": lambda: msgspec.json.encode(BATCH),
    GOOGLE: google_encode,
    "betterproto": better_encode,
}
DECODERS: dict[str, Callable[[], object]] = {
    "ours, protobuf to structs": lambda: BATCH_SUBMIT_USAGE_REQUEST.decode(BYTES),
    "ours, REST JSON to structs": lambda: BATCH_SUBMIT_USAGE_REQUEST.decode_json(TEXT),
    "the same, each key once": lambda: BATCH_SUBMIT_USAGE_REQUEST.decode_json(TEXT, unique=True),
    "the same, from a client not ours": lambda: BATCH_SUBMIT_USAGE_REQUEST.decode_json(SPACED, unique=True),
    "msgspec alone, JSON to dicts": lambda: msgspec.json.decode(TEXT),
    GOOGLE: google_decode,
    "betterproto": lambda: Better().parse(BYTES),
}


def fastest(rows: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Microseconds a record, of the fastest of all rounds; betterproto runs in every tenth only."""
    best = dict.fromkeys(rows, float("inf"))
    for round_ in range(ROUNDS):
        for name, run in rows.items():
            if name != "betterproto" or round_ % 10 == 0:
                began = time.process_time()
                run()
                best[name] = min(best[name], (time.process_time() - began) * 1e6 / RECORDS)
    return best


def main() -> None:
    assert Google.FromString(BYTES) == Google.FromString(google_encode())
    assert BATCH_SUBMIT_USAGE_REQUEST.decode(google_encode()) == BATCH
    assert BATCH_SUBMIT_USAGE_REQUEST.decode(better_encode()) == BATCH
    print(f"{RECORDS} records of {len(BYTES) // RECORDS} bytes as protobuf, {len(TEXT) // RECORDS} as JSON")
    for title, rows in (("encode", ENCODERS), ("decode", DECODERS)):
        best = fastest(rows)
        print(f"\n{title:<38}{'µs a record':>12}{'to google':>12}")
        for name, cost in best.items():
            print(f"{name:<38}{cost:>12.2f}{cost / best[GOOGLE]:>12.2f}")


if __name__ == "__main__":
    main()
