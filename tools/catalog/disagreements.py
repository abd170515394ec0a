"""Where the catalog's two sources disagree, and which of them is taken why.

`python -m tools.catalog.disagreements` prints every rate that both know and have otherwise, with the decision
in overrides.json and its reason; the exit status is 1 when one is undecided.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import msgspec

from llm_cost_ops.catalog.bundle import read_bundle
from llm_cost_ops.catalog.load import Catalog
from tools.catalog.build import build_catalog
from tools.catalog.litellm import SecondModel, SecondSource, plain, read_second_source
from tools.catalog.overrides import DisagreementFact, Overrides

__all__ = ["Disagreement", "decided", "find_disagreements", "first_source", "main"]

_OVERRIDES = Path(__file__).with_name("overrides.json")


class Disagreement(NamedTuple):
    """A rate that both sources have, at other prices of so many units."""

    provider: str
    model: str
    meter: str
    first: Decimal
    second: Decimal
    per: int

    def __str__(self) -> str:
        return (
            f"{self.provider}/{self.model} {self.meter}: {plain(self.first)} in the catalog, "
            f"{plain(self.second)} in litellm, per {self.per}"
        )


def first_source(overrides: bytes) -> Catalog:
    """The catalog as it is without the second source."""
    facts = msgspec.json.decode(overrides)
    data, _ = build_catalog(
        msgspec.json.encode({**facts, "disagreements": []}), SecondSource(version="0", models=[])
    )
    return Catalog(*read_bundle(data))


def find_disagreements(catalog: Catalog, models: Sequence[SecondModel]) -> Iterator[Disagreement]:
    """Each rate of the models that the catalog has otherwise; only of models with one standard card today."""
    for model in models:
        standard = [
            card
            for card in catalog.cards(model.provider, model.name)
            if not (card.service_tier or card.processing or card.region or card.speed or card.windows)
            and card.effective_until is None
        ]
        if len(standard) != 1:
            continue
        ours = {rate.meter: rate for rate in standard[0].rates}
        for rate in model.rates:
            mine, price = ours.get(rate.meter), Decimal(rate.price)
            if mine is not None and mine.price * rate.per != price * (mine.per or 1_000_000):
                yield Disagreement(model.provider, model.name, rate.meter, mine.price, price, rate.per)


def decided(found: Disagreement, facts: Sequence[DisagreementFact]) -> list[DisagreementFact]:
    """The decisions about a model: there should be one."""
    return [
        fact
        for fact in facts
        if fact.provider == found.provider and any(fnmatchcase(found.model, name) for name in fact.models)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Prints the disagreements and decisions, by kind; 1 when one is undecided or decided twice."""
    parser = argparse.ArgumentParser(prog="python -m tools.catalog.disagreements", description=main.__doc__)
    parser.add_argument("--overrides", type=Path, default=_OVERRIDES)
    options = parser.parse_args(arguments)
    overrides = options.overrides.read_bytes()
    facts = msgspec.json.decode(overrides, type=Overrides).disagreements
    found = list(find_disagreements(first_source(overrides), read_second_source().disputed))
    wrong = [each for each in found if len(decided(each, facts)) != 1]
    for fact in facts:
        mine = [each for each in found if decided(each, facts) == [fact]]
        source = "litellm's" if fact.take == "second" else "the catalog's"
        sys.stdout.write(f"{len(mine)} rates, {source} taken. {fact.why} {fact.source_url}\n")
        sys.stdout.write("".join(f"  {each}\n" for each in mine))
    sys.stdout.write("".join(f"not decided once: {each}\n" for each in wrong))
    sys.stdout.write(f"{len(found)} rates disagree, {len(wrong)} undecided\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
