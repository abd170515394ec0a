"""Amounts by meter: of every record the lines are calculated again, since no table holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import product
from typing import Any

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.ledger.encoding import decode_usage
from llm_cost_ops.ledger.pieces import pieces_of
from llm_cost_ops.ledger.postgres.cards import kept_card
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.interning import organization_ids
from llm_cost_ops.ledger.postgres.rows import units_sql
from llm_cost_ops.ledger.postgres.sums import (
    PIECES_OF_ROWS,
    SERIES_COLUMNS,
    Keys,
    check_removed,
    newest,
    pieces_sql,
    record_conditions,
    series_conditions,
)
from llm_cost_ops.ledger.shares import add_share, shares_of
from llm_cost_ops.ledger.types import Amounts, Filter
from llm_cost_ops.pricing.pricebook import CompiledCard
from llm_cost_ops.rules.limits import check_amounts

__all__ = ["summarize_meters"]


def summarize_meters(
    session: Session,
    where: Filter,
    group_by: tuple[str, ...],
    buckets: Sequence[tuple[datetime, datetime]] | None,
) -> list[tuple[Keys, int, Amounts]]:
    """The sums of each group, bucket and currency that has any, by bucket and keys."""
    cards = _Cards(session)
    totals: dict[tuple[int, Keys, str], Amounts] = {}
    # The cards are looked up first: no other query can run between two rows.
    for bucket, currency, pricing, units, data, *dimensions in _rows(session, where, buckets, cards):
        record: UsageRecord = decode_usage(data)
        shares = shares_of(record, cards.found[pricing], units)
        named = dict(zip(SERIES_COLUMNS, dimensions, strict=True))
        for keys in product(*_values(group_by, record, named, shares)):
            share = shares[keys[group_by.index("meter")]]
            place = (bucket, keys, currency)
            sums = totals.get(place)
            if sums is None:
                sums = totals[place] = Amounts(currency=currency)
            add_share(sums, share, record.request_count or 1, reported=named["status"] == "reported")
    for sums in totals.values():
        check_amounts(sums)
    return [(keys, bucket, totals[bucket, keys, currency]) for bucket, keys, currency in sorted(totals)]


def _rows(
    session: Session,
    where: Filter,
    buckets: Sequence[tuple[datetime, datetime]] | None,
    cards: _Cards,
) -> Iterator[tuple[Any, ...]]:
    orgs = organization_ids(session, where.organization_ids)
    pieces = list(pieces_of(where, buckets))
    check_removed(session, where, pieces, needs_rows=True)
    if not orgs or not pieces:
        return
    cost = newest(session, orgs)
    conditions, parameters = record_conditions(where)
    of_series, named = series_conditions(where)
    more = "".join(f" AND {condition}" for condition in [*conditions, *of_series])
    source = (
        f"FROM {PIECES_OF_ROWS}{cost.join} {cost.join_series} "
        f"JOIN llm_cost_ops.organization o ON o.id = u.org WHERE s.org = ANY(%(orgs)s){more}"
    )
    values = pieces_sql(pieces) | parameters | named | {"orgs": orgs}
    cards.look_up([row[0] for row in session.rows(f"SELECT DISTINCT {cost.pricing} {source}", **values)])
    columns = f"g.bucket, s.currency, {cost.pricing}, {units_sql(cost.cost)}, u.record"
    yield from session.each(f"SELECT {columns}, {', '.join(SERIES_COLUMNS.values())} {source}", values)


class _Cards:
    """The cards that priced what a query reads, each looked up once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.found: dict[int, CompiledCard | None] = {}

    def look_up(self, pricings: Sequence[int]) -> None:
        """Find the card of each pricing."""
        query = "SELECT id, digest FROM llm_cost_ops.pricing WHERE id = ANY(%s)"
        for pricing, digest in self._session.rows(query, list(pricings)):
            card = kept_card(self._session, digest) if digest else None
            self.found[pricing] = None if card is None else CompiledCard(card)


def _values(
    group_by: tuple[str, ...], record: UsageRecord, named: dict[str, str], shares: Iterable[str]
) -> Iterator[Iterable[str]]:
    for name in group_by:
        if name in named:
            yield (named[name],)
        elif name == "meter":
            yield shares
        elif name == "user":
            yield (record.user_id,)
        elif name == "tag":
            yield dict.fromkeys(record.tags) or ("",)
        else:
            yield (record.labels.get(name.removeprefix("label:"), ""),)
