"""Builds the bundled catalog: `python -m tools.catalog.build`.

The prices come from the package genai-prices, which has to be installed; overrides.json is laid on
top, and models that it does not have are added from litellm_prices.json. The same inputs give the
same file.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec

from llm_cost_ops.catalog import bundle
from llm_cost_ops.catalog.bundle import CatalogError, Match, Payload, ProviderRow, read_bundle, write_bundle
from tools.catalog.litellm import SOURCE_URL, SecondSource, add_models, read_second_source
from tools.catalog.overrides import Overrides, apply_overrides
from tools.catalog.sources import Draft, DraftModel, read_provider

__all__ = ["build_catalog", "main"]

_HERE = Path(__file__).parent


def build_catalog(overrides: bytes, second: SecondSource | None = None) -> tuple[bytes, Payload]:
    """Builds a catalog file from the installed genai-prices and the text of an overrides file.

    `second` is the source of what genai-prices has not, by default that of litellm_prices.json.
    Returns the file and its payload. Raises CatalogError for data that cannot be mapped.
    """
    from genai_prices.data import providers

    facts = msgspec.json.decode(overrides, type=Overrides)
    drafts = {provider.id: read_provider(provider, facts.backdates(provider.id)) for provider in providers}
    apply_overrides(drafts, facts)
    second = second or read_second_source()
    add_models(drafts, second, facts.disagreements)
    urls = sorted({url for draft in drafts.values() for model in draft.models for url in model.urls})
    unknown = set(facts.provider_aliases.values()) - drafts.keys()
    if unknown:
        raise CatalogError(f"an alias names unknown providers: {', '.join(sorted(unknown))}")
    payload = Payload(
        version=f"genai-prices {version('genai-prices')}+overrides.{facts.revision}",
        published=facts.published,
        urls=urls,
        origins={SOURCE_URL: f"litellm {second.version}"},
        aliases=dict(sorted(facts.provider_aliases.items())),
        providers={name: _raw(_provider(drafts[name], urls)) for name in sorted(drafts)},
    )
    return write_bundle(payload), payload


def _raw(row: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(row))


def _provider(draft: Draft, urls: list[str]) -> ProviderRow:
    places = {url: place for place, url in enumerate(urls)}
    names: dict[str, int] = {}
    patterns: list[tuple[int, Match]] = []
    for place, model in enumerate(draft.models):
        for card, url in zip(model.row.cards, model.urls, strict=True):
            card.url = places[url]
        _check_ids(draft, model)
        for name in model.row.aliases:
            names.setdefault(name.lower(), place)
        if model.match is not None:
            patterns.append((place, model.match))
    # In the source an id is not always a name; where another model has it as one, that one keeps it.
    for place, model in enumerate(draft.models):
        names.setdefault(model.row.id.lower(), place)
    return ProviderRow(
        name=draft.name,
        fallbacks=draft.fallbacks,
        names=names,
        patterns=patterns,
        models=[_raw(model.row) for model in draft.models],
    )


def _check_ids(draft: Draft, model: DraftModel) -> None:
    keys = [(c.since, c.tier, c.processing, c.region, c.speed, bool(c.windows)) for c in model.row.cards]
    if len(set(keys)) != len(keys):
        raise CatalogError(f"{draft.id}/{model.row.id} has two cards of one key")


def main(arguments: list[str] | None = None) -> None:
    """Writes the catalog; with --check, only says whether the file is what a build would write."""
    parser = argparse.ArgumentParser(prog="python -m tools.catalog.build", description=main.__doc__)
    parser.add_argument("--overrides", type=Path, default=_HERE / "overrides.json")
    parser.add_argument("--output", type=Path, default=Path(bundle.__file__).parent / "prices.bin")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    data, payload = build_catalog(options.overrides.read_bytes())
    if options.check:
        # Not the bytes: another zlib may pack the same prices differently.
        if read_bundle(options.output.read_bytes())[1] != payload:
            parser.exit(1, f"{options.output} is not what a build writes: run it without --check\n")
    else:
        options.output.write_bytes(data)
    sys.stdout.write(f"{payload.version}: {len(payload.providers)} providers, {len(data)} bytes\n")


if __name__ == "__main__":
    main()
