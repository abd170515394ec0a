"""Receipts when the catalog moves on, and when somebody changed what was stored; repricing and deadlines."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_cost_ops import CostOpsClient, UsageRecord, exceptions
from llm_cost_ops.catalog import Catalog, load_catalog, use_catalog
from llm_cost_ops.catalog.bundle import read_bundle
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.ledger.types import Filter, Repriced
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.service import costs as repricing

GOLDEN = Path(__file__).parents[2] / "golden"
CALL: dict[str, Any] = {
    "organization_id": "acme",
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 500,
}


def other_catalog(*, empty: bool) -> Catalog:
    """The catalog in force under another version, or without any price."""
    header, payload = read_bundle(Path(load_catalog().path).read_bytes())
    if empty:
        payload = msgspec.structs.replace(payload, providers={}, aliases={})
    return Catalog(msgspec.structs.replace(header, version="genai-prices 9.9.9"), payload)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "costs.db"


@pytest.fixture
def client(path: Path) -> Iterator[CostOpsClient]:
    with CostOpsClient(base_url=f"sqlite:///{path}?durability=process") as client:
        yield client


@pytest.fixture(params=[True, False], ids=["empty", "another"])
def refreshed(request: pytest.FixtureRequest) -> Iterator[Any]:
    before = load_catalog()
    yield lambda: use_catalog(other_catalog(empty=request.param))
    use_catalog(before)


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        assert connection.execute(statement).rowcount > 0
    connection.commit()
    connection.close()


def test_a_receipt_outlives_the_catalog(client: CostOpsClient, refreshed: Any) -> None:
    usage_id = client.usage.submit(**CALL).usage_id
    before = client.costs.get_record(usage_id, organization_id="acme")
    assert len(before.lines) == 2
    refreshed()
    assert client.costs.get_record(usage_id, organization_id="acme") == before
    assert client.costs.verify(usage_id, organization_id="acme").matches
    by_meter = client.costs.get(group_by="meter").breakdown
    assert {group.value: group.cost for group in by_meter} == {
        "INPUT": Decimal("0.0025"),
        "OUTPUT": Decimal("0.005"),
    }


def test_a_card_that_is_lost_says_so(client: CostOpsClient, path: Path, refreshed: Any) -> None:
    usage_id = client.usage.submit(**CALL).usage_id
    change(path, "DELETE FROM kept_card")
    refreshed()
    found = client.costs.verify(usage_id, organization_id="acme")
    assert (found.matches, found.recomputed) == (False, None)
    assert found.reason == "the price card openai/gpt-4o was not kept with the record"
    cost = client.costs.get_record(usage_id, organization_id="acme")
    assert (cost.total_cost, cost.lines, cost.rate_card_id) == (Decimal("0.0075"), [], "openai/gpt-4o")
    summary = client.costs.get(group_by="meter")
    assert {group.value: group.cost for group in summary.breakdown} == {
        "": Decimal("0.0075"),
        "INPUT": Decimal(0),
        "OUTPUT": Decimal(0),
    }
    assert sum(group.tokens for group in summary.breakdown) == summary.total_tokens


def test_a_total_that_was_changed_is_found(client: CostOpsClient, path: Path) -> None:
    usage_id = client.usage.submit(**CALL).usage_id
    change(path, "UPDATE usage SET cost_micros = cost_micros + 1")
    found = client.costs.verify(usage_id, organization_id="acme")
    assert not found.matches
    assert found.reason == "total_cost was recorded as 0.007501 and is 0.0075"
    assert found.recomputed is not None
    assert found.recomputed.total_cost == Decimal("0.0075")
    assert client.costs.get_record(usage_id, organization_id="acme").lines == [], "they would not add up"


def test_a_card_that_was_changed_is_found(client: CostOpsClient, path: Path) -> None:
    usage_id = client.usage.submit(**CALL).usage_id
    change(
        path, "UPDATE kept_card SET card = CAST(replace(CAST(card AS TEXT), '\"2.5\"', '\"2.6\"') AS BLOB)"
    )
    found = client.costs.verify(usage_id, organization_id="acme")
    assert not found.matches
    assert "is not the one that priced the record" in found.reason


def test_repricing_that_runs_out_of_time_keeps_what_it_did(
    client: CostOpsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {**CALL, "provider": "house", "model_id": "m"}
    client.usage.submit_batch([UsageRecord(**call) for _ in range(20)])
    client.pricing.create(provider="house", model_id="m", input_price_per_1k="1", effective_date="2020-01-01")
    monkeypatch.setattr(repricing, "CHUNK", 1)
    steps = 0
    step = SqliteLedger.reprice

    async def slow(ledger: SqliteLedger, where: Filter, *arguments: Any, **options: Any) -> Repriced:
        nonlocal steps
        done = await step(ledger, where, *arguments, **options)
        steps += 1
        if steps == 7:
            [context] = [each for each in arguments if isinstance(each, CallContext)]
            context.deadline = context.runtime.monotonic()
        return done

    monkeypatch.setattr(SqliteLedger, "reprice", slow)
    with pytest.raises(exceptions.TimeoutError, match="7 of 7 records were repriced and stay so") as caught:
        client.costs.reprice(retry=None)
    assert caught.value.maybe_applied
    assert client.costs.get().unpriced_requests == 13
    monkeypatch.undo()
    report = client.costs.reprice()
    assert (report.examined, report.changed) == (20, 13)
    assert client.costs.get().unpriced_requests == 0


def test_chunks_cover_every_record_once(client: CostOpsClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repricing, "CHUNK", 7)
    client.usage.submit_batch([UsageRecord(**CALL) for _ in range(21)])
    assert client.costs.reprice(dry_run=True).examined == 21
    client.usage.submit(**CALL)
    assert client.costs.reprice(dry_run=True, status=["priced", "unpriced"]).examined == 22
