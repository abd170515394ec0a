"""Entries, contexts and a store run to the end of each call."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from llm_cost_ops._gen.messages import CostStatus, UsageRecord
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.ledger.types import Entry
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import CallContext, Metadata, drive
from llm_cost_ops.rpc.method import Cardinality, Idempotency, MethodDescriptor
from llm_cost_ops.rpc.runtime import Runtime, SyncRuntime
from tests.waiting import MAX_WAIT

__all__ = ["START", "TAKEN", "Sync", "check_structure", "context", "entry", "pricing"]

START = datetime(2026, 1, 5, tzinfo=UTC)

_METHOD: MethodDescriptor[Any, Any] = MethodDescriptor(
    "test.Service",
    "Call",
    cardinality=Cardinality.UNARY_UNARY,
    idempotency=Idempotency.UNKNOWN,
    request=None,
    response=None,
    validate=lambda message, path, violations: None,
)


def context(timeout: float | None = MAX_WAIT, runtime: Runtime | None = None) -> CallContext:
    runtime = runtime or SyncRuntime()
    deadline = None if timeout is None else runtime.monotonic() + timeout
    return CallContext(method=_METHOD, runtime=runtime, metadata=Metadata(), deadline=deadline)


TAKEN = datetime(2026, 2, 1, 12, 30, 0, 5, tzinfo=UTC)


@lru_cache
def pricing(status: CostStatus = CostStatus.PRICED, currency: str = "USD") -> Pricing:
    """How an entry was priced; the same object for the same arguments."""
    return Pricing(status, currency, "card-1", 1, ("region",), "test 1")


def entry(
    at: datetime | float = 0.0, *, units: int | None = 1_500_000_000, currency: str = "USD", **fields: Any
) -> Entry:
    """An entry at a moment, or so many seconds after START."""
    moment = at if isinstance(at, datetime) else START + timedelta(seconds=at)
    fields = {
        "organization_id": "acme",
        "provider": "openai",
        "model_id": "gpt-4o",
        "input_tokens": 100,
    } | fields
    key = fields.pop("idempotency_key", "")
    record = UsageRecord(timestamp=moment, **fields)
    record.total_tokens = (record.input_tokens or 0) + (record.output_tokens or 0)
    by = pricing(CostStatus.UNPRICED if units is None else CostStatus.PRICED, currency)
    return Entry(record, key, TAKEN, units, by)


SUMS = ("count", "occupied", "summarize")


class Sync:
    """A ledger whose methods are run to their end: `store.append(...)` without a context or an await."""

    def __init__(
        self, path: Any = None, *, ledger: Any = None, timeout: float | None = MAX_WAIT, **options: Any
    ) -> None:
        self.store = ledger or SqliteLedger(None if path is None else str(path), **options)
        self.timeout = timeout

    def __getattr__(self, name: str) -> Any:
        owner = self.store.sums if name in SUMS else self.store
        method = getattr(owner, name)
        if name == "aclose":
            return lambda: drive(method())
        return lambda *args, **options: drive(method(*args, context(self.timeout), **options))

    def get_cost(self, usage_id: str, organization_id: str = "acme") -> Any:
        return drive(self.store.get_cost(organization_id, usage_id, context(self.timeout)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.aclose()


def check_structure(path: Path | str) -> None:
    """SQLite finds nothing wrong with a file."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
