"""Small catalogs, and nobody's refreshed one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_cost_ops.catalog import use_catalog
from llm_cost_ops.catalog.bundle import CardRow, ModelRow, Payload, ProviderRow, RateRow, write_bundle

__all__ = ["Bundle", "bundle", "own_data_folder"]

Bundle = Callable[..., bytes]


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give each test a data folder of its own, and the process its catalog back after it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    before = use_catalog(None)
    yield tmp_path / "data" / "llm-cost-ops"
    use_catalog(before)


@pytest.fixture
def bundle() -> Bundle:
    """Give a maker of catalog files with one provider, one model, and one card per price."""

    def make(
        *prices: str,
        cards: list[CardRow] | None = None,
        published: str = "2027-01-01",
        version: str = "test 1",
        **provider: Any,
    ) -> bytes:
        rows = cards or [
            CardRow(rates=[RateRow("INPUT", price)], since=f"2026-01-{place:02}")
            for place, price in enumerate(prices or ("1",), 1)
        ]
        model = ModelRow(id="model", aliases=["other"], cards=rows)
        facts: dict[str, Any] = {"names": {"model": 0, "other": 0}, **provider}
        row = ProviderRow(name="Maker", models=[msgspec.Raw(msgspec.json.encode(model))], **facts)
        payload = Payload(
            version=version,
            published=published,
            urls=["https://example.com/prices"],
            aliases={"the-maker": "maker"},
            providers={"maker": msgspec.Raw(msgspec.json.encode(row))},
        )
        return write_bundle(payload)

    return make
