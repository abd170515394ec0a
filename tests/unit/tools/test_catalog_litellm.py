"""The second source: what of litellm's prices is understood, and that it never stands before the first."""

from __future__ import annotations

import json
import re
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_cost_ops.catalog import CatalogError, load_catalog
from llm_cost_ops.catalog.bundle import CardRow, ModelRow, RateRow
from tools.catalog import build, disagreements, litellm
from tools.catalog.litellm import SecondModel, SecondSource, add_models, read_second_source, read_wheel
from tools.catalog.overrides import DisagreementFact
from tools.catalog.sources import Draft, DraftModel


def _wheel(tmp_path: Path, **entries: Any) -> Path:
    path = tmp_path / "litellm-9.8.7-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("litellm/model_prices_and_context_window_backup.json", json.dumps(entries))
    return path


def _entry(provider: str = "ai21", mode: str = "chat", **prices: Any) -> dict[str, Any]:
    return {"litellm_provider": provider, "mode": mode, **prices}


def _read(tmp_path: Path, **entries: Any) -> dict[str, list[RateRow]]:
    source = read_wheel(_wheel(tmp_path, **entries))
    assert source.version == "9.8.7"
    return {f"{model.provider}/{model.name}": model.rates for model in source.models}


def test_prices_by_the_token_become_prices_by_the_million(tmp_path: Path) -> None:
    found = _read(
        tmp_path,
        a=_entry(
            input_cost_per_token=2e-07,
            output_cost_per_token=4.5e-06,
            cache_read_input_token_cost=2.5e-08,
            input_cost_per_token_above_200k_tokens=4e-07,
            input_cost_per_token_batches=1e-07,
            max_tokens=5,
        ),
    )
    assert found == {
        "ai21/a": [
            RateRow("INPUT", "0.2", 1_000_000, [(200_000, False, "0.4")]),
            RateRow("CACHE_READ", "0.025", 1_000_000),
            RateRow("OUTPUT", "4.5", 1_000_000),
        ]
    }


def test_names_lose_the_prefix_of_their_provider(tmp_path: Path) -> None:
    entries = {
        "voyage/rerank-9": _entry("voyage", "rerank", input_cost_per_token=1e-06),
        "together_ai/a/b": _entry("together_ai", input_cost_per_token=1e-06),
        "bedrock_mantle/m": _entry("bedrock_mantle", input_cost_per_token=1e-06),
        "bedrock/us-east-1/n": _entry("bedrock", input_cost_per_token=1e-06),
    }
    assert _read(tmp_path, **entries).keys() == {"voyageai/rerank-9", "together/a/b", "aws/m"}


def test_xai_begins_its_tiers_at_the_bound(tmp_path: Path) -> None:
    entry = _entry(
        "xai",
        input_cost_per_token=1e-06,
        input_cost_per_image_token=1e-06,
        input_cost_per_token_above_200k_tokens=2e-06,
    )
    (rates,) = _read(tmp_path, **{"xai/g": entry}).values()
    assert [rate.tiers for rate in rates] == [[(199_999, False, "2")]] * 2


@pytest.mark.parametrize(
    "entry",
    [
        _entry(input_cost_per_token=0, output_cost_per_token=0.0),
        _entry(input_cost_per_token=1e-06, input_cost_per_moon=1),
        _entry(input_cost_per_token="1e-06"),
        _entry(input_cost_per_token=1e-06, tiered_pricing=[{"input_cost_per_token": 2e-06}]),
        _entry(input_cost_per_token=-1e-06),
        _entry(input_cost_per_token_above_200k_tokens=1e-06, output_cost_per_token=1e-06),
        _entry(mode="image_generation", input_cost_per_token=1e-06),
        _entry("snowflake", input_cost_per_token=1e-06),
    ],
)
def test_what_is_not_understood_is_left_out(tmp_path: Path, entry: dict[str, Any]) -> None:
    assert _read(tmp_path, a=entry) == {}


def test_a_name_with_two_prices_has_none(tmp_path: Path) -> None:
    entries = {
        "m": _entry("bedrock", input_cost_per_token=1e-06),
        "bedrock_mantle/m": _entry("bedrock_mantle", input_cost_per_token=2e-06),
    }
    assert _read(tmp_path, **entries) == {}


def _source(*models: tuple[str, str]) -> SecondSource:
    rates = [RateRow("INPUT", "7")]
    return SecondSource(
        version="9.8.7", models=[SecondModel(provider=p, name=name, rates=rates) for p, name in models]
    )


def test_the_first_source_keeps_its_names_and_patterns() -> None:
    card = CardRow(rates=[RateRow("INPUT", "1")])
    known = DraftModel(row=ModelRow(id="m", aliases=["n"], cards=[card]), match=None, urls=["u"])
    drafts = {"cohere": Draft("cohere", "Cohere", [], "u", [known])}
    add_models(drafts, _source(("cohere", "M"), ("cohere", "n"), ("cohere", "o"), ("ai21", "j")))
    assert [model.row.id for model in drafts["cohere"].models] == ["m", "o"]
    assert [model.row.id for model in drafts["ai21"].models] == ["j"]
    with pytest.raises(CatalogError, match="unknown providers: nobody"):
        add_models(drafts, _source(("nobody", "m")))


def decisions() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """overrides.json without the rates that were taken over from litellm by hand, and those rates."""
    known = json.loads((Path(build.__file__).parent / "overrides.json").read_bytes())
    taken = [fact for fact in known["rates"] if fact["source_url"] == litellm.SOURCE_URL]
    known["rates"] = [fact for fact in known["rates"] if fact not in taken]
    return known, taken


def test_its_cards_say_where_they_come_from() -> None:
    second = read_second_source()
    catalog = load_catalog()
    mine = [card for card in catalog if card.origin_version == f"litellm {second.version}"]
    assert 200 < len(mine) <= len(second.models) + len(second.disputed)
    assert all(card.source_url == litellm.SOURCE_URL for card in mine)
    assert {card.origin_version for card in catalog} == {catalog.version, f"litellm {second.version}"}
    listed = {(model.provider, model.name): model for model in (*second.models, *second.disputed)}
    decided = {(fact["provider"], name) for fact in decisions()[1] for name in fact["models"]}
    for card in mine:
        if (card.provider, card.model_id) in decided:
            continue  # its price is of the first source, but for what was taken over by hand
        model = listed[card.provider, card.model_id]
        assert [(rate.meter, rate.price) for rate in card.rates] == [
            (rate.meter, Decimal(rate.price)) for rate in model.rates
        ]


def test_a_build_without_it_has_the_first_source_alone() -> None:
    overrides = json.dumps(decisions()[0]).encode()
    _, payload = build.build_catalog(overrides, SecondSource(version="0", models=[]))
    assert "ai21" not in payload.providers
    assert litellm.SOURCE_URL not in payload.urls


def test_a_decision_for_the_second_source_replaces_names_and_patterns() -> None:
    card = CardRow(rates=[RateRow("INPUT", "1")])
    known = DraftModel(row=ModelRow(id="m", aliases=["N"], cards=[card]), match=None, urls=["u"])
    drafts = {"cohere": Draft("cohere", "Cohere", [], "u", [known])}
    source = _source()
    source.disputed = [SecondModel(provider="cohere", name=n, rates=[RateRow("INPUT", "7")]) for n in "no"]
    take = {"why": "w", "source_url": "", "provider": "cohere", "take": "second"}
    add_models(drafts, source, [DisagreementFact(models=["n"], **take)])
    found = {model.row.id: (model.row.aliases, model.row.cards[0].rates) for model in drafts["cohere"].models}
    assert found == {"m": ([], [RateRow("INPUT", "1")]), "n": ([], [RateRow("INPUT", "7")])}
    add_models(drafts, source, [DisagreementFact(models=["m"], **take | {"take": "first"})])
    assert len(drafts["cohere"].models) == 2


def test_every_disagreement_is_decided_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert disagreements.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    rates = [line for line in lines if line.startswith("  ")]
    assert lines[-1] == f"{len(rates)} rates disagree, 0 undecided"
    assert len(rates) > 100
    facts = [line for line in lines[:-1] if not line.startswith("  ")]
    assert all(re.match(r"[1-9]\d* rates, (the catalog|litellm)'s taken\. [A-Z].+\.", line) for line in facts)
    models = read_second_source().disputed
    assert models == sorted(models, key=lambda model: (model.provider, model.name))


def test_what_is_undecided_or_decided_twice_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads((Path(build.__file__).parent / "overrides.json").read_bytes())
    groq = next(fact for fact in facts["disagreements"] if fact["provider"] == "groq")
    for changed in (
        [fact for fact in facts["disagreements"] if fact is not groq],
        [*facts["disagreements"], groq],
    ):
        path = tmp_path / "overrides.json"
        path.write_text(json.dumps({**facts, "disagreements": changed}))
        assert disagreements.main(["--overrides", str(path)]) == 1
        assert "not decided once: groq/openai/gpt-oss-safeguard-20b CACHE_READ" in capsys.readouterr().out


def test_the_catalog_has_what_was_decided() -> None:
    catalog = load_catalog()

    def price(provider: str, model: str) -> tuple[str, str]:
        [card] = catalog.cards(provider, model)
        return str(card.rates[0].price), card.origin_version.partition(" ")[0]

    assert price("aws", "eu.amazon.nova-lite-v1:0") == ("0.078", "litellm")
    assert price("aws", "us.amazon.nova-lite-v1:0") == ("0.06", "genai-prices")
    assert price("aws", "us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0") == ("3.6", "litellm")
    assert price("aws", "anthropic.claude-sonnet-4-6") == ("3.3", "genai-prices")
    assert price("mistral", "open-mistral-nemo") == ("0.15", "genai-prices")


def test_the_command_writes_what_is_missing_and_prints_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = {
        "gpt-4o-2024-08-06": _entry("openai", input_cost_per_token=9e-06, output_cost_per_token=1e-05),
        "no-such-model": _entry("openai", input_cost_per_token=1e-06),
    }
    output = tmp_path / "out.json"
    litellm.main([str(_wheel(tmp_path, **entries)), "--output", str(output)])
    written = read_second_source(output)
    assert [model.name for model in written.models] == ["no-such-model"]
    assert [model.name for model in written.disputed] == ["gpt-4o-2024-08-06"]
    assert capsys.readouterr().out == (
        "openai/gpt-4o-2024-08-06 INPUT: 2.5 in the catalog, 9 in litellm, per 1000000\n"
        "litellm 9.8.7: 1 models added, 1 rates disagree\n"
    )
    with pytest.raises(CatalogError, match="is not a wheel of litellm"):
        litellm.main([str(output), "--output", str(output)])


def test_the_file_is_what_the_command_writes() -> None:
    path = Path(litellm.__file__).with_name("litellm_prices.json")
    source = msgspec.json.decode(path.read_bytes(), type=SecondSource)
    places = [(model.provider, model.name) for model in source.models]
    assert places == sorted(set(places))
