"""What is drawn: the colours of series, and the data of plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from hashlib import blake2b

import msgspec

from llm_cost_ops.dashboard.figures import exact
from llm_cost_ops.dashboard.report import OTHERS, Series

__all__ = ["chart_data", "colours_of"]

_COLOURS = 8
GREY = 8
# These come together more often than any others.
_USUAL = {"openai": 0, "anthropic": 1, "google": 2, "mistral": 3, "aws": 4, "azure": 5, "cohere": 6, "xai": 7}


def colours_of(shown: Sequence[str], names: Iterable[str] = ()) -> dict[str, int]:
    """The colours of the series that are shown, as numbers; no two have the same one.

    `names` are those of all groups, the dearest first: the first of them keep their colours from page to
    page, whichever are shown there.
    """
    kept: dict[str, int] = {}
    for name in sorted([*dict.fromkeys(names)][:_COLOURS]):
        kept[name] = _free(name, kept.values())
    colours = {name: kept[name] for name in shown if name in kept}
    for name in shown:
        if name == OTHERS:
            colours[name] = GREY
        elif name not in colours:
            colours[name] = _free(name, colours.values())
    return colours


def _free(name: str, taken: Iterable[int]) -> int:
    """The colour that a name would have, or the next that is not taken."""
    wanted = _USUAL.get(name, blake2b(name.encode(), digest_size=1).digest()[0] % _COLOURS)
    free = [number % _COLOURS for number in range(wanted, wanted + _COLOURS)]
    return next((number for number in free if number not in set(taken)), wanted)


def chart_data(
    labels: Sequence[str], series: Sequence[Series], colours: dict[str, int], *, kind: str, unit: str
) -> str:
    """What the script draws, as JSON: amounts are texts with every digit, and "" where there is none.

    `kind` is bars, which are stacked, or line; `unit` is a currency, tokens, requests or %.
    """
    drawn = [
        {
            "name": each.name or "(none)",
            "colour": colours.get(each.name, GREY),
            "points": [exact(point) for point in each.points],
        }
        for each in series
    ]
    totals = [
        exact(sum(filter(None, points), Decimal(0)))
        for points in zip(*(each.points for each in series), strict=True)
    ]
    data = {"kind": kind, "unit": unit, "labels": labels, "series": drawn, "totals": totals}
    return msgspec.json.encode(data).decode()
