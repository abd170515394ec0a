"""Picks prices from litellm's wheel for models that genai-prices has none of: the catalog's second source.

`python -m tools.catalog.litellm WHEEL` writes litellm_prices.json, which the build reads, and prints
where the two sources disagree. The file is kept in the repository, so that a build needs no litellm; it has
the models whose rates are disputed too, and overrides.json decides about those.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from llm_cost_ops.catalog.bundle import CardRow, CatalogError, ModelRow, RateRow
from llm_cost_ops.catalog.names import NameTable
from tools.catalog.overrides import DisagreementFact
from tools.catalog.sources import Draft, DraftModel, read_provider

__all__ = [
    "SOURCE_URL",
    "SecondModel",
    "SecondSource",
    "add_models",
    "main",
    "plain",
    "read_second_source",
    "read_wheel",
]

SOURCE_URL = "https://github.com/BerriAI/litellm/blob/main/model_prices_and_context_window.json"

_HERE = Path(__file__).parent
_PRICES = "litellm/model_prices_and_context_window_backup.json"
# litellm's name of a provider: ours, and what is cut from the front of its models' names.
_PROVIDERS: dict[str, tuple[str, str]] = {
    "ai21": ("ai21", ""),
    "anthropic": ("anthropic", ""),
    "bedrock": ("aws", ""),
    "bedrock_converse": ("aws", ""),
    "bedrock_mantle": ("aws", "bedrock_mantle/"),
    "cerebras": ("cerebras", "cerebras/"),
    "cohere": ("cohere", ""),
    "cohere_chat": ("cohere", ""),
    "crusoe": ("crusoe", "crusoe/"),
    "groq": ("groq", "groq/"),
    "mistral": ("mistral", "mistral/"),
    "moonshot": ("moonshotai", "moonshot/"),
    "openai": ("openai", ""),
    "perplexity": ("perplexity", "perplexity/"),
    "together_ai": ("together", "together_ai/"),
    "voyage": ("voyageai", "voyage/"),
    "xai": ("x-ai", "xai/"),
}
# Whose tiers begin at the bound: litellm applies all of them above it.
_FROM_BOUND = {"x-ai"}
_NEW_PROVIDERS = {"ai21": "AI21", "crusoe": "Crusoe"}
_MODES = {"chat", "completion", "embedding", "rerank", "responses"}
_RATES: dict[str, tuple[str, int]] = {
    "input_cost_per_token": ("INPUT", 1_000_000),
    "input_cost_per_audio_token": ("INPUT_AUDIO", 1_000_000),
    "input_cost_per_image_token": ("INPUT_IMAGE", 1_000_000),
    "cache_read_input_token_cost": ("CACHE_READ", 1_000_000),
    "cache_creation_input_token_cost": ("CACHE_WRITE", 1_000_000),
    "cache_creation_input_token_cost_above_1hr": ("CACHE_WRITE_EXTENDED", 1_000_000),
    "output_cost_per_token": ("OUTPUT", 1_000_000),
    "output_cost_per_reasoning_token": ("REASONING", 1_000_000),
    "output_cost_per_audio_token": ("OUTPUT_AUDIO", 1_000_000),
    "output_cost_per_image_token": ("OUTPUT_IMAGE", 1_000_000),
    "input_cost_per_query": ("SEARCH_UNITS", 1_000),
}
_TIER = re.compile(r"(?P<key>.+)_above_(?P<thousands>\d+)k_tokens")
# Prices beside the standard one: a call of theirs is estimated from the standard card.
_VARIANT = re.compile(r"_(?:batches|flex|priority|balanced|ultrafast)$")
# Fees by the search, and factors of regions: their meters have no rate, so such a call is PARTIAL.
_IGNORED = {
    "search_context_cost_per_query",
    "google_maps_grounding_cost_per_query",
    "input_cost_per_token_cache_hit",
}


class SecondModel(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A model and its standard rates, as a card has them."""

    provider: str
    name: str
    rates: list[RateRow]


class SecondSource(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole of litellm_prices.json. `version` is litellm's.

    `models` are those that the first source has not, `disputed` those that it has at other rates.
    """

    version: str
    models: list[SecondModel]
    disputed: list[SecondModel] = []


def read_second_source(path: Path = _HERE / "litellm_prices.json") -> SecondSource:
    """Reads what `main` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=SecondSource)


def add_models(
    drafts: dict[str, Draft], source: SecondSource, decisions: Sequence[DisagreementFact] = ()
) -> None:
    """Adds the models that no name and no pattern of the drafts means, and those that are decided for it."""
    for model in _missing(drafts, source):
        title = _NEW_PROVIDERS.get(model.provider, "")
        draft = drafts.setdefault(model.provider, Draft(model.provider, title, [], SOURCE_URL, []))
        draft.models.append(_draft_model(model))
    for model in _taken(source, decisions):
        models = drafts[model.provider].models
        for known in models:
            known.row.aliases = [name for name in known.row.aliases if name.lower() != model.name.lower()]
        # A model of the very name is replaced: its cards are those of the first source.
        models[:] = [known for known in models if known.row.id.lower() != model.name.lower()]
        models.append(_draft_model(model))


def _draft_model(model: SecondModel) -> DraftModel:
    row = ModelRow(id=model.name, cards=[CardRow(rates=model.rates)])
    return DraftModel(row=row, match=None, urls=[SOURCE_URL])


def _taken(source: SecondSource, decisions: Sequence[DisagreementFact]) -> list[SecondModel]:
    """The disputed models that are decided for the second source."""
    return [
        model
        for model in source.disputed
        for fact in decisions
        if fact.take == "second"
        and fact.provider == model.provider
        and any(fnmatchcase(model.name, name) for name in fact.models)
    ]


def _missing(drafts: Mapping[str, Draft], source: SecondSource) -> list[SecondModel]:
    tables = {name: _names(draft) for name, draft in drafts.items()}
    found = [
        model
        for model in source.models
        if model.provider not in tables or tables[model.provider].find(model.name) is None
    ]
    if unknown := {model.provider for model in found} - tables.keys() - _NEW_PROVIDERS.keys():
        raise CatalogError(f"the second source has unknown providers: {', '.join(sorted(unknown))}")
    return found


def _names(draft: Draft) -> NameTable:
    names = {
        name.lower(): place
        for place, model in enumerate(draft.models)
        for name in (model.row.id, *model.row.aliases)
    }
    patterns = [(place, model.match) for place, model in enumerate(draft.models) if model.match is not None]
    return NameTable(names, patterns)


def read_wheel(wheel: Path) -> SecondSource:
    """The standard prices of every model whose keys are all understood, by provider and name.

    A name with two different prices, as regional entries make, is left out. So is one whose prices
    are all 0: there it stands for a price that is not known.
    """
    with zipfile.ZipFile(wheel) as file:
        entries: dict[str, dict[str, Any]] = json.loads(file.read(_PRICES), parse_float=Decimal)
    found: dict[tuple[str, str], list[RateRow] | None] = {}
    for key, entry in entries.items():
        place = _place(key, entry)
        rates = _rates(entry, 1 if place[0] in _FROM_BOUND else 0) if place is not None else None
        if place is not None and rates is not None:
            found[place] = rates if found.get(place, rates) == rates else None
    models = [
        SecondModel(provider=provider, name=name, rates=rates)
        for (provider, name), rates in sorted(found.items())
        if rates is not None
    ]
    return SecondSource(version=wheel.name.split("-")[1], models=models)


def _place(key: str, entry: Mapping[str, Any]) -> tuple[str, str] | None:
    known = _PROVIDERS.get(entry.get("litellm_provider", ""))
    if known is None or entry.get("mode") not in _MODES:
        return None
    provider, prefix = known
    name = key.removeprefix(prefix)
    # Where names have no prefix, one with a slash is a region's or an image size's.
    if provider in ("aws", "openai", "anthropic", "cohere", "ai21") and "/" in name:
        return None
    return provider, name


def _rates(entry: Mapping[str, Any], lower: int) -> list[RateRow] | None:
    """The rates of an entry, tiers `lower` below their bound; None where one is unknown or all are 0."""
    rates: dict[str, RateRow] = {}
    tiers: list[tuple[str, int, str]] = []
    for key, value in entry.items():
        if ("cost" not in key and "pricing" not in key) or key in _IGNORED or _VARIANT.search(key):
            continue
        tier = _TIER.fullmatch(key)
        known = _RATES.get(tier["key"] if tier else key)
        if known is None or not isinstance(value, int | Decimal) or value < 0:
            return None
        meter, per = known
        price = plain(Decimal(value) * per)
        if tier:
            tiers.append((meter, int(tier["thousands"]) * 1000 - lower, price))
        elif value or meter in ("INPUT", "OUTPUT"):
            rates[meter] = RateRow(meter, price, per)
    for meter, above, price in sorted(tiers, key=lambda each: each[1]):
        if meter not in rates:
            return None
        rates[meter].tiers = [*rates[meter].tiers, (above, False, price)]
    image, text = rates.get("INPUT_IMAGE"), rates.get("INPUT")
    if image is not None and text is not None and image.price == text.price:
        image.tiers = text.tiers
    if all(rate.price == "0" for rate in rates.values()):
        return None
    order = [meter for meter, _ in _RATES.values()]
    # A reranker that is billed by the search has rates of 0 for tokens, which say nothing.
    searched = "SEARCH_UNITS" in rates
    kept = {meter: rate for meter, rate in rates.items() if not searched or rate.price != "0"}
    return [kept[meter] for meter in order if meter in kept]


def plain(price: Decimal) -> str:
    """A price in digits, without an exponent and without zeros at its end."""
    return f"{price.normalize():f}"


def main(arguments: list[str] | None = None) -> None:
    """Writes litellm_prices.json from a wheel, and prints where it and the catalog disagree."""
    from genai_prices.data import providers

    # Which builds a catalog, and so reads what this module writes.
    from tools.catalog.disagreements import find_disagreements, first_source

    parser = argparse.ArgumentParser(prog="python -m tools.catalog.litellm", description=main.__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--output", type=Path, default=_HERE / "litellm_prices.json")
    options = parser.parse_args(arguments)
    try:
        source = read_wheel(options.wheel)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise CatalogError(f"{options.wheel} is not a wheel of litellm: {error}") from error
    found = list(find_disagreements(first_source((_HERE / "overrides.json").read_bytes()), source.models))
    names = {(each.provider, each.model) for each in found}
    source.disputed = [model for model in source.models if (model.provider, model.name) in names]
    source.models = _missing({each.id: read_provider(each, {}) for each in providers}, source)
    options.output.write_text(_written(source), encoding="utf-8")
    sys.stdout.write("".join(f"{each}\n" for each in found))
    sys.stdout.write(
        f"litellm {source.version}: {len(source.models)} models added, {len(found)} rates disagree\n"
    )


def _written(source: SecondSource) -> str:
    """One model a line, so that a change of prices is read in a diff."""
    lists = {
        name: ",\n".join(f"    {msgspec.json.encode(model).decode()}" for model in models)
        for name, models in (("models", source.models), ("disputed", source.disputed))
    }
    text = ",\n".join(f'  "{name}": [\n{lines}\n  ]' for name, lines in lists.items())
    return f'{{\n  "version": "{source.version}",\n{text}\n}}\n'


if __name__ == "__main__":
    main()
