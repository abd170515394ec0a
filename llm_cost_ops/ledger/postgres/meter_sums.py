"""Amounts by meter: of every record the lines are calculated again, since no table holds them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import product
from typing import Any

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.ledger.day_spans import Keys, Totals
from llm_cost_ops.ledger.encoding import decode_usage
from llm_cost_ops.ledger.postgres.cards import kept_card
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.rows import units_sql
from llm_cost_ops.ledger.postgres.sums import (
    SERIES_COLUMNS,
    Rows,
    add_amounts,
    newest,
    record_conditions,
    series_conditions,
)
from llm_cost_ops.ledger.shares import Share, shares_of
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.pricing.pricebook import CompiledCard

__all__ = ["add_meter_rows"]


def add_meter_rows(
    session: Session, where: Filter, group_by: Keys, rows: Rows, totals: Totals, orgs: Sequence[int]
) -> None:
    """Add what rows of organizations hold."""
    cards = _Cards(session)
    # The cards are looked up first: no other query can run between two rows. Where there are too many groups
    # to be kept, this ends between two rows, and so does the cursor.
    with closing(_rows(session, where, rows, orgs, cards)) as found:
        for bucket, currency, pricing, units, data, *dimensions in found:
            record: UsageRecord = decode_usage(data)
            shares = shares_of(record, cards.found[pricing], units)
            named = dict(zip(SERIES_COLUMNS, dimensions, strict=True))
            reported = named["status"] == "reported"
            for keys in product(*_values(group_by, record, named, shares)):
                share = shares[keys[group_by.index("meter")]]
                place = (keys, bucket, currency)
                add_amounts(totals, place, _amounts(share, record.request_count or 1, reported=reported))


def _amounts(share: Share, requests: int, *, reported: bool) -> tuple[int, ...]:
    put_in, put_out, cached, units, unpriced = share
    of_reported = (requests, units) if reported else (0, 0)
    return (
        1,
        requests,
        put_in,
        put_out,
        cached,
        requests if unpriced else 0,
        of_reported[0],
        units,
        of_reported[1],
    )


def _rows(
    session: Session, where: Filter, rows: Rows, orgs: Sequence[int], cards: _Cards
) -> Generator[tuple[Any, ...]]:
    cost = newest(session, orgs)
    conditions, parameters = record_conditions(where)
    of_series, named = series_conditions(where)
    more = "".join(f" AND {condition}" for condition in [*conditions, *of_series])
    source = (
        f"FROM {rows.source}{cost.join} {cost.join_series} "
        f"JOIN llm_cost_ops.organization o ON o.id = u.org WHERE s.org = ANY(%(orgs)s){more}"
    )
    values = rows.parameters | parameters | named | {"orgs": list(orgs)}
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
