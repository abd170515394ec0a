"""What a refresh would change, as data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llm_cost_ops.catalog import Catalog, PriceChange, load_catalog, price_diff
from llm_cost_ops.catalog.bundle import CardRow, MultiplierRow, RateRow, WindowRow
from llm_cost_ops.catalog.load import read_catalog

Bundle = Callable[..., bytes]


def _catalog(tmp_path: Path, data: bytes) -> Catalog:
    path = tmp_path / "c.bin"
    path.write_bytes(data)
    return read_catalog(path)


def test_the_same_data_differs_in_nothing(bundle: Bundle, tmp_path: Path) -> None:
    assert price_diff(load_catalog(), load_catalog()) == []
    old = _catalog(tmp_path, bundle("1", version="a"))
    assert price_diff(old, _catalog(tmp_path, bundle("1.0", version="a"))) == []
    assert price_diff(old, _catalog(tmp_path, bundle("1.01", version="a"))) != []
    assert price_diff(old, _catalog(tmp_path, bundle("1", version="b"))) == []


def test_cards_come_go_and_change(bundle: Bundle, tmp_path: Path) -> None:
    old = _catalog(tmp_path, bundle("1", "2"))
    new = _catalog(tmp_path, bundle("1", "3", "4"))
    facts = {"provider": "maker", "model_id": "model", "field": "INPUT"}
    assert price_diff(old, new) == [
        PriceChange(
            kind="changed", card_id="maker/model@2026-01-02", old="2 / 1000000", new="3 / 1000000", **facts
        ),
        PriceChange(kind="added", card_id="maker/model@2026-01-03", new="4 / 1000000", **facts),
    ]
    assert price_diff(new, old)[1] == PriceChange(
        kind="removed", card_id="maker/model@2026-01-03", old="4 / 1000000", **facts
    )


def test_everything_that_moves_a_price_is_compared(bundle: Bundle, tmp_path: Path) -> None:
    old = CardRow(
        rates=[RateRow("INPUT", "1"), RateRow("PAGES", "2", 1000)], windows=[WindowRow("01:00", "02:00")]
    )
    new = CardRow(
        rates=[
            RateRow("INPUT", "1", tiers=[(5, False, "2"), (9, True, "3")]),
            RateRow("OUTPUT", "0", 1, [], 2, 1),
        ],
        until="2027-01-01",
        windows=[WindowRow("01:00", "02:00", [1, 2], "Asia/Shanghai")],
        multipliers=[MultiplierRow("region", "1.1")],
        currency="EUR",
    )
    changes = price_diff(
        _catalog(tmp_path, bundle(cards=[old])),
        _catalog(tmp_path, bundle(cards=[new])),
    )
    assert [(change.field, change.old, change.new) for change in changes] == [
        ("INPUT", "1 / 1000000", "1 / 1000000; above 5: 2; from 9: 3"),
        ("PAGES", "2 / 1000", ""),
        ("currency", "USD", "EUR"),
        ("effective_until", "", "2027-01-01"),
        ("windows", "01:00-02:00 UTC daily", "01:00-02:00 Asia/Shanghai 12"),
        ("multipliers", "", "region 1.1"),
        ("OUTPUT", "", "0 / 1; at least 2; 1 included"),
    ]
    assert {change.kind for change in changes} == {"changed"}


def test_a_change_within_a_day_and_of_what_a_factor_is_for_is_one(bundle: Bundle, tmp_path: Path) -> None:
    rates = [RateRow("INPUT", "1")]
    old = CardRow(rates=rates, until="2027-01-01", multipliers=[MultiplierRow("region", "1.10")])
    new = CardRow(rates=rates, until="2027-01-01T16:00Z", multipliers=[MultiplierRow("region", "1.1", True)])
    changes = price_diff(_catalog(tmp_path, bundle(cards=[old])), _catalog(tmp_path, bundle(cards=[new])))
    assert [(change.field, change.old, change.new) for change in changes] == [
        ("effective_until", "2027-01-01", "2027-01-01T16:00Z"),
        ("multipliers", "region 1.1", "region 1.1 of all meters"),
    ]
