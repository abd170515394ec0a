"""The ids of what many rows share: organizations, series, pricings. None of them ever changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llm_cost_ops.ledger.postgres.cards import keep_card
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.rows import text_array
from llm_cost_ops.pricing.types import Pricing

__all__ = ["Ids", "intern", "organization_ids"]

Ids = tuple[int, int, int]
"""Of organization, series and pricing."""

_MAX_KNOWN = 50_000
_DIMENSIONS = "provider, model, project, operation, service_tier, processing, region, currency, status"
_SERIES = "unnest({}) AS n ({})".format(", ".join(f"%(s{at})s::text[]" for at in range(9)), _DIMENSIONS)
_ADD_SERIES = (
    f"INSERT INTO llm_cost_ops.series (org, {_DIMENSIONS}) SELECT %(org)s, {_DIMENSIONS} FROM {_SERIES} "
    f"ORDER BY {_DIMENSIONS} ON CONFLICT DO NOTHING"
)
_FIND_SERIES = (
    f"SELECT s.id, {_DIMENSIONS} FROM llm_cost_ops.series s JOIN {_SERIES} USING ({_DIMENSIONS}) "
    "WHERE s.org = %(org)s"
)
_PRICING = "card_id, card_version, origin_version, fallbacks, digest"
_FIND_PRICING = (
    "SELECT id FROM llm_cost_ops.pricing WHERE card_id = %s AND card_version = %s AND origin_version = %s "
    "AND fallbacks = %s AND digest = %s"
)
_ADD_PRICING = (
    f"INSERT INTO llm_cost_ops.pricing ({_PRICING}) VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
)
_FIND_ORGANIZATION = "SELECT id FROM llm_cost_ops.organization WHERE name = %s"
_ADD_ORGANIZATION = "INSERT INTO llm_cost_ops.organization (name) VALUES (%s) ON CONFLICT DO NOTHING"


def intern(session: Session, wanted: Iterable[tuple[tuple[str, ...], Pricing]]) -> list[Ids]:
    """The ids for each pair of series and pricing; what is new is added, and a new pricing's card kept.

    Outside of a transaction each is committed at once: a row that nothing refers to harms nobody. What a
    connection has seen is remembered with it, and no longer, since another server may be behind the next.
    """
    pairs = list(wanted)
    known = session.known
    if len(known) > _MAX_KNOWN:
        known.clear()
    new: dict[str, list[tuple[str, ...]]] = {}
    pricings: dict[tuple[Any, ...], Pricing] = {}
    for series, by in pairs:
        if series not in known:
            new.setdefault(series[0], []).append(series)
        if (key := _pricing_key(by)) not in known:
            pricings[key] = by
    # In one order each: within a transaction, others that add the same rows wait for it.
    for key in sorted(pricings):
        _intern_pricing(session, pricings[key])
    for name in sorted(new):
        _intern_series(session, name, list(dict.fromkeys(new[name])))
    return [(*known[series], known[_pricing_key(by)]) for series, by in pairs]


def _pricing_key(by: Pricing) -> tuple[Any, ...]:
    # The digest comes first, since cards are kept in this order too.
    return (by.digest, by.card_id, by.card_version, by.origin_version, by.fallbacks)


def _intern_series(session: Session, name: str, series: list[tuple[str, ...]]) -> None:
    org = _id(session, _FIND_ORGANIZATION, _ADD_ORGANIZATION, (name,))
    values = list(zip(*series, strict=True))[1:]
    columns: Any = {f"s{at}": text_array(column) for at, column in enumerate(values)}
    rows = session.rows(_FIND_SERIES, org=org, **columns)
    if len(rows) < len(series):
        session.run(_ADD_SERIES, org=org, **columns)
        rows = session.rows(_FIND_SERIES, org=org, **columns)
    for found, *dimensions in rows:
        session.known[name, *dimensions] = (org, found)


def _intern_pricing(session: Session, by: Pricing) -> None:
    if by.digest and by.card is not None:
        keep_card(session, by.digest, by.card)
    values = (by.card_id, by.card_version, by.origin_version, ",".join(by.fallbacks), by.digest)
    session.known[_pricing_key(by)] = _id(session, _FIND_PRICING, _ADD_PRICING, values)


def _id(session: Session, find: str, add: str, values: Sequence[object]) -> int:
    rows = session.rows(find, *values)
    if not rows:
        session.run(add, *values)
        rows = session.rows(find, *values)
    return int(rows[0][0])


def organization_ids(session: Session, names: Sequence[str]) -> list[int]:
    """The ids of the organizations with these names, or of all where none are given."""
    if not names:
        return [org for (org,) in session.rows("SELECT id FROM llm_cost_ops.organization")]
    query = "SELECT id FROM llm_cost_ops.organization WHERE name = ANY(%s)"
    return [org for (org,) in session.rows(query, list(names))]
