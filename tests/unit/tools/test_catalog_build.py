"""The build is repeatable, what ships is what it writes, and the source's prices survive it."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import genai_prices.types as genai
import msgspec
import pytest
from genai_prices.data import providers
from genai_prices.data_units import unit_data

from llm_cost_ops._gen.messages import RateCard
from llm_cost_ops.catalog import CatalogError, bundle, load_catalog
from llm_cost_ops.catalog.bundle import read_bundle
from llm_cost_ops.pricing.selection import PriceQuery, select_card
from tools.catalog import build
from tools.catalog.litellm import read_second_source
from tools.catalog.sources import MAPPED_PRICES, read_provider

HERE = Path(build.__file__).parent
SHIPPED = Path(bundle.__file__).parent
OVERRIDES: dict[str, Any] = msgspec.json.decode((HERE / "overrides.json").read_bytes())
MOMENTS = [
    datetime(2024, 6, 1, 12, tzinfo=UTC),
    datetime(2025, 11, 1, 2, 30, tzinfo=UTC),
    datetime(2026, 8, 19, 7, tzinfo=UTC),
    datetime(2026, 11, 18, 0, 45, tzinfo=UTC),
    datetime(2027, 1, 4, 23, 59, tzinfo=UTC),
]
CONTEXTS: list[dict[str, str]] = [
    {"processing": "batch"},
    {"service_tier": "flex"},
    {"service_tier": "priority"},
    {"service_tier": "fast"},
    {"speed": "fast"},
]

# What floats made of five prices on their way into the source, and what the providers publish.
ARTEFACTS = {
    "0.18000000000000002": "0.18",
    "0.13999999999999999": "0.14",
    "0.27999999999999997": "0.28",
    "1.0399999999999998": "1.04",
}

FREE: dict[str, tuple[object, ...]] = {meter: (Decimal(0), 1_000_000, []) for meter in ("INPUT", "OUTPUT")}

pytestmark = pytest.mark.skipif(
    not load_catalog().version.startswith(f"genai-prices {version('genai-prices')}+"),
    reason="the catalog was built from another version of genai-prices",
)


def _build(**changes: Any) -> bytes:
    return build.build_catalog(msgspec.json.encode({**OVERRIDES, **changes}))[0]


def test_what_ships_is_what_a_build_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "prices.bin"
    build.main(["--output", str(output)])
    assert output.read_bytes() == _build()
    assert read_bundle(output.read_bytes())[1] == read_bundle((SHIPPED / "prices.bin").read_bytes())[1]
    build.main(["--check"])
    assert capsys.readouterr().out.startswith("genai-prices 0.2.3+overrides.6: 49 providers, ")
    output.write_bytes(_build(provider_aliases={}))
    with pytest.raises(SystemExit):
        build.main(["--check", "--output", str(output)])


def test_the_notice_of_the_source_is_kept() -> None:
    notice = (SHIPPED / "NOTICE").read_text(encoding="utf-8")
    assert "Copyright (c) Pydantic Services Inc." in notice
    assert "Copyright (c) 2023 Berri AI" in notice
    assert f"litellm {read_second_source().version}\n" in notice
    assert f"genai-prices {version('genai-prices')} " in notice
    assert "The above copyright notice and this permission notice shall be included" in notice


def test_every_override_says_why_and_where() -> None:
    facts = [fact for kind in OVERRIDES.values() if isinstance(kind, list) for fact in kind]
    assert len(facts) > 20
    for fact in facts:
        assert fact["why"].endswith(".")
        assert re.fullmatch(r"https://\S+", fact["source_url"])


def test_units_are_those_of_the_source() -> None:
    units = {unit["price_key"]: unit["per"] for unit in unit_data.values()}
    assert {key: per for key, (_, per) in MAPPED_PRICES.items()} == {key: units[key] for key in MAPPED_PRICES}


@pytest.mark.parametrize(
    "change",
    [
        {"free": [{"why": "", "source_url": "", "provider": "openai", "models": ["gpt-4o"]}]},
        {"free": [{"why": "", "source_url": "", "provider": "openai", "models": ["no-such-*"]}]},
        {"cards": [{"why": "", "source_url": "", "provider": "openai", "model": "no-such", "cards": []}]},
        {"provider_aliases": {"a": "no-such-provider"}},
        {"clones": [*OVERRIDES["clones"], OVERRIDES["clones"][0]]},
        {"rates": [{**OVERRIDES["rates"][0], "meter": "PAGES"}]},
    ],
)
def test_an_override_that_no_longer_fits_stops_the_build(change: dict[str, Any]) -> None:
    with pytest.raises(CatalogError):
        _build(**change)


def _provider(model: genai.ModelInfo) -> genai.Provider:
    return genai.Provider(id="p", name="P", api_pattern="", models=[model])


def _model(prices: Any, *variants: genai.PriceVariant) -> genai.ModelInfo:
    return genai.ModelInfo(
        id="m", match=genai.ClauseEquals("m"), prices=prices, price_variants=list(variants)
    )


@pytest.mark.parametrize(
    "model",
    [
        _model(genai.ModelPrice(input_new_mtok=Decimal(1))),
        _model(genai.ModelPrice(audio_hours=Decimal(1), input_audio_hours=Decimal(2))),
        _model(
            genai.ModelPrice(input_mtok=Decimal(1)),
            genai.PriceVariant(when={"moon": "full"}, prices=genai.ModelPrice(input_mtok=Decimal(2))),
        ),
        _model(
            [
                genai.ConditionalPrice(prices=genai.ModelPrice(input_mtok=Decimal(1))),
                genai.ConditionalPrice(
                    genai.TimeOfDateConstraint(time(1, 0, 30), time(2)),
                    prices=genai.ModelPrice(input_mtok=Decimal(2)),
                ),
            ]
        ),
    ],
)
def test_what_the_build_does_not_know_stops_it(model: genai.ModelInfo) -> None:
    with pytest.raises(CatalogError, match=r"^m: "):
        read_provider(_provider(model), {})


def test_a_price_that_begins_has_none_before_it() -> None:
    start = genai.StartDateConstraint(date(2026, 2, 1))
    model = _model([genai.ConditionalPrice(start, prices=genai.ModelPrice(input_mtok=Decimal(1)))])
    (card,) = read_provider(_provider(model), {}).models[0].row.cards
    assert (card.since, card.until) == ("2026-02-01", "")


def test_a_variant_is_backdated_no_further_than_the_standard_price_beside_it() -> None:
    prices = [
        genai.ConditionalPrice(prices=genai.ModelPrice(input_mtok=Decimal(8))),
        genai.ConditionalPrice(
            genai.StartDateConstraint(date(2025, 5, 1)), prices=genai.ModelPrice(input_mtok=Decimal(4))
        ),
    ]
    variant = genai.PriceVariant(
        when={"processing": "batch"},
        prices=genai.ModelPrice(input_mtok=Decimal(2)),
        constraint=genai.StartDateConstraint(date(2026, 10, 14)),
    )
    for known, expected in (("2024-04-15", "2025-05-01"), ("2026-01-01", "2026-01-01")):
        draft = read_provider(_provider(_model(prices, variant)), {("processing", "batch"): known})
        batch = [card for card in draft.models[0].row.cards if card.processing]
        assert [(card.since, card.until) for card in batch] == [(expected, "")]


def _overridden() -> set[tuple[str, str]]:
    """The models whose prices are not to be those of the source."""
    facts = [*OVERRIDES["rates"], *OVERRIDES["free"], *OVERRIDES["weekdays"], *OVERRIDES["clones"]]
    facts += OVERRIDES["redirects"]
    patterns = [
        (fact["provider"], name)
        for fact in facts
        for name in fact["models"]
        if "region" not in fact.get("set", {})
    ]
    patterns += [(fact["provider"], fact["model"]) for fact in OVERRIDES["cards"]]
    return {
        (provider.id, model.id)
        for provider in providers
        for model in provider.models
        for owner, pattern in patterns
        if owner == provider.id and re.fullmatch(pattern.replace("*", ".*"), model.id)
    }


def _expected(price: genai.ModelPrice) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for key, value in vars(price).items():
        meter, per = MAPPED_PRICES["audio_hours" if key == "input_audio_hours" else key]
        if isinstance(value, Decimal):
            found[meter] = (Decimal(ARTEFACTS.get(str(value), value)), per, [])
        elif value is not None:
            found[meter] = (value.base, per, [(tier.start, False, tier.price) for tier in value.tiers])
    return found


def _rates(card: RateCard) -> dict[str, tuple[object, ...]]:
    return {
        rate.meter: (rate.price, rate.per, [(tier.above, tier.inclusive, tier.price) for tier in rate.tiers])
        for rate in card.rates
    }


@pytest.mark.parametrize("provider", [pytest.param(each, id=each.id) for each in providers])
def test_every_model_keeps_the_prices_of_the_source(provider: genai.Provider) -> None:
    catalog, overridden = load_catalog(), _overridden()
    for model in provider.models:
        cards = catalog.cards(provider.id, model.id)
        if (provider.id, model.id) in overridden or not cards:
            continue
        assert cards[0].model_id == model.id
        for moment in MOMENTS:
            # Before these moments variants are backdated by overrides.
            for context in [{}, *CONTEXTS] if moment > MOMENTS[2] else [{}]:
                expected = _expected(model.get_prices(moment, context))
                selection = select_card(
                    cards, PriceQuery(provider=provider.id, model_id=model.id, at=moment, **context)
                )
                assert selection is not None
                found = _rates(selection.card)
                assert found == expected or (not expected and found == FREE), (model.id, moment, context)
                known = any(variant.when == context for variant in model.price_variants or [])
                assert bool(selection.fallbacks) == bool(context and not known), (model.id, moment, context)


def test_models_without_cards_are_those_without_prices() -> None:
    catalog = load_catalog()
    without = [
        (provider.id, model.id)
        for provider in providers
        for model in provider.models
        if not catalog.cards(provider.id, model.id)
    ]
    assert len(without) < 20
    for provider, model_id in without:
        (model,) = [
            each
            for owner in providers
            if owner.id == provider
            for each in owner.models
            if each.id == model_id
        ]
        assert isinstance(model.prices, genai.ModelPrice)
        assert not _expected(model.prices)


@pytest.mark.parametrize("provider", [pytest.param(each, id=each.id) for each in providers])
def test_names_mean_the_models_that_they_mean_in_the_source(provider: genai.Provider) -> None:
    catalog = load_catalog()
    names = [model.id for model in provider.models]
    names += [f"{name}-20260101" for name in names[:200]] + [f"us.{name}" for name in names[:200]]
    for name in names:
        found = provider.find_model(name)
        cards = catalog.cards(provider.id, name)
        if found is not None and cards and name != "mistral-large-latest":
            assert cards[0].model_id == found.id, name
        elif found is None and cards:
            # An id that its own pattern does not match is a name all the same.
            assert cards[0].model_id in {name, re.sub(r"-20260101$", "-2026-01-01", name)}


@pytest.mark.parametrize(
    ("price", "kept"),
    [
        *ARTEFACTS.items(),
        ("0.30000000000000004", "0.3"),
        ("0.041666666666666664", "0.041666666666666664"),
        ("0.0833333333333333", "0.0833333333333333"),
        ("0.844944", "0.844944"),
        ("100", "100"),
        ("1E+2", "100"),
        ("0", "0"),
    ],
)
def test_digits_that_a_float_left_are_dropped(price: str, kept: str) -> None:
    draft = read_provider(_provider(_model(genai.ModelPrice(input_mtok=Decimal(price)))), {})
    assert [rate.price for card in draft.models[0].row.cards for rate in card.rates] == [kept]
