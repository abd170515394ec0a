"""Answers as tables: dicts, pandas and polars, with the same exact amounts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from llm_cost_ops import AsyncCostOpsClient, CostOpsClient

AT = datetime(2026, 11, 20, 15, tzinfo=UTC)
CALL: dict[str, Any] = {"organization_id": "acme", "provider": "openai", "input_tokens": 1}
# gpt-4o-mini: 0.15 per million in.
COSTS = {"gpt-4o-mini": Decimal("0.00000015"), "gpt-4o": Decimal("0.0000025")}


def record_two(client: CostOpsClient) -> None:
    for model in COSTS:
        client.usage.submit(**CALL, model_id=model, timestamp=AT, labels={"a": "b"})


@pytest.fixture
def client() -> Iterator[CostOpsClient]:
    with CostOpsClient(base_url="sqlite://") as client:
        record_two(client)
        yield client


def test_groups_have_a_column_a_dimension(client: CostOpsClient) -> None:
    rows = client.costs.get(group_by=["day", "model"]).to_dicts()
    assert {row["model"]: row["cost"] for row in rows} == COSTS
    assert {row["day"] for row in rows} == {"2026-11-20"}
    assert list(rows[0])[:3] == ["day", "model", "cost"]
    assert not {"keys", "dimension", "value", "unknown_"} & rows[0].keys()
    assert all(type(row["cost"]) is Decimal and row["requests"] == 1 for row in rows)


def test_a_total_without_groups_is_a_table_of_no_rows(client: CostOpsClient) -> None:
    summary = client.costs.get()
    assert summary.to_dicts() == []
    assert len(summary.to_pandas()) == 0
    assert summary.to_polars().is_empty()


def test_a_series_has_its_metrics_beside_its_times(client: CostOpsClient) -> None:
    series = client.analytics.get(start_date="2026-11-19", end_date="2026-11-20", interval="day")
    first, second = series.to_dicts()
    assert (first["total_cost"], first["total_requests"]) == (Decimal(0), 0)
    assert second["timestamp"] == datetime(2026, 11, 20, tzinfo=UTC)
    assert second["total_cost"] == Decimal("0.00000265")
    assert not {"metrics", "group"} & second.keys()


def test_pandas_keeps_amounts_exact_unless_asked_for_floats(client: CostOpsClient) -> None:
    summary = client.costs.get(group_by="model")
    frame = summary.to_pandas()
    assert dict(zip(frame["model"], frame["cost"], strict=True)) == COSTS
    plotted = summary.to_pandas(floats=True)
    assert plotted["cost"].dtype == float
    assert pd.Series(plotted["cost"]).sum() == pytest.approx(2.65e-6)


def test_polars_keeps_amounts_exact_unless_asked_for_floats(client: CostOpsClient) -> None:
    summary = client.costs.get(group_by="model")
    frame = summary.to_polars()
    assert isinstance(frame.schema["cost"], pl.Decimal)
    assert dict(frame.select("model", "cost").iter_rows()) == COSTS
    assert summary.to_polars(floats=True).schema["cost"] == pl.Float64


def test_records_are_written_as_parquet(client: CostOpsClient, tmp_path: Path) -> None:
    path = tmp_path / "usage.parquet"
    client.usage.list().to_polars().write_parquet(path)
    read = pl.read_parquet(path)
    assert dict(read.select("model_id", "estimated_cost").iter_rows()) == COSTS
    assert read["labels"].to_list() == [{"a": "b"}] * 2


def test_lists_are_tables_of_all_their_pages(client: CostOpsClient) -> None:
    pages = client.usage.list(page_size=1)
    assert len(pages.page.to_dicts()) == 1
    assert [row["labels"] for row in pages.to_dicts()] == [{"a": "b"}] * 2
    assert set(pages.to_pandas()["cost_status"]) == {"priced"}
    assert pages.to_polars().height == 2
    prices = client.pricing.list(provider="openai", model_id="gpt-4o")
    assert set(prices.to_pandas()["model_id"]) == {"gpt-4o"}


def test_lists_of_an_async_client() -> None:
    async def run() -> Any:
        async with AsyncCostOpsClient(base_url="sqlite://") as client:
            for model in COSTS:
                await client.usage.submit(**CALL, model_id=model)
            pages = client.usage.list(page_size=1)
            return await pages.to_dicts(), await pages.to_pandas(), await pages.to_polars(floats=True)

    rows, frame, floats = asyncio.run(run())
    assert {row["estimated_cost"] for row in rows} == set(COSTS.values())
    assert set(frame["model_id"]) == set(COSTS)
    assert floats.schema["estimated_cost"] == pl.Float64


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_what_is_not_installed_says_how(
    library: str, client: CostOpsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"to_{library} needs {library}: pip install {library}"):
        getattr(client.costs.get(group_by="model"), f"to_{library}")()
