"""Amounts by meter: of every record the lines are calculated again, since no table holds them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import product
from typing import NamedTuple

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
from llm_cost_ops.ledger.shares import Counts, Place, PlainShares, Share, shares_of
from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.pricing.pricebook import CompiledCard

__all__ = ["add_meter_rows"]


def add_meter_rows(
    session: Session, where: Filter, group_by: Keys, rows: Rows, totals: Totals, orgs: Sequence[int]
) -> None:
    """Add what rows of organizations hold."""
    query = _Query(session, where, rows, orgs)
    plain = PlainShares(query.compiled.get) if SERIES_COLUMNS.keys() | {"meter"} >= {*group_by} else None
    # Where there are too many groups to be kept, this ends between two rows, and so does the cursor.
    with closing(query.rows()) as found:
        for place, units, counts, data in found:
            if plain is not None and plain.add(place, units, counts, data):
                continue
            kind, bucket, pricing = place
            series = query.series[kind]
            record: UsageRecord = decode_usage(data)
            shares = shares_of(record, query.compiled[pricing], units)
            for keys in product(*_values(group_by, record, series.named, shares)):
                share = shares[keys[group_by.index("meter")]]
                amounts = _amounts(share, 1, counts[0], reported=series.reported)
                add_amounts(totals, (keys, bucket, series.currency), amounts)
    for (kind, bucket, _), share, meter, records, requests in plain.found() if plain is not None else ():
        series = query.series[kind]
        keys = tuple([meter if name == "meter" else series.named[name] for name in group_by])
        amounts = _amounts(share, records, requests, reported=series.reported)
        add_amounts(totals, (keys, bucket, series.currency), amounts)


def _amounts(share: Share, records: int, requests: int, *, reported: bool) -> tuple[int, ...]:
    put_in, put_out, cached, units, unpriced = share
    of_reported = (requests, units) if reported else (0, 0)
    return (
        records,
        requests,
        put_in,
        put_out,
        cached,
        requests if unpriced else 0,
        of_reported[0],
        units,
        of_reported[1],
    )


class _Series(NamedTuple):
    """What records of a series have in common: its values by dimension, and its currency."""

    named: dict[str, str]
    currency: str

    @property
    def reported(self) -> bool:
        """Whether their cost is what the provider stated."""
        return self.named["status"] == "reported"


class _Query:
    """The rows to be read, and what they refer to.

    That is looked up first: no other query can run between two rows. Series are not joined to each row, which
    took twice the time of reading it.
    """

    def __init__(self, session: Session, where: Filter, rows: Rows, orgs: Sequence[int]) -> None:
        self._session = session
        self._cost = cost = newest(session, orgs)
        conditions, parameters = record_conditions(where)
        more = "".join(f" AND {condition}" for condition in conditions)
        self._source = f"FROM {rows.source}{cost.join} WHERE u.org = ANY(%(orgs)s){more}"
        self._values = rows.parameters | parameters | {"orgs": list(orgs)}
        self.series: list[_Series] = []
        """By the numbers that places have."""
        self.compiled: dict[int, CompiledCard | None] = {}
        """By pricing, the card, None where there is none."""
        self._numbers: dict[tuple[int, int], int] = {}
        self._look_up(where)

    def _look_up(self, where: Filter) -> None:
        of_series, named = series_conditions(where)
        columns = f"u.org, {self._cost.series} AS series, {self._cost.pricing} AS pricing"
        found = self._session.rows(
            f"WITH found AS MATERIALIZED (SELECT DISTINCT {columns} {self._source}) "
            f"SELECT f.org, f.series, f.pricing, s.currency, {', '.join(SERIES_COLUMNS.values())} "
            "FROM found f JOIN llm_cost_ops.series s ON s.org = f.org AND s.id = f.series "
            f"JOIN llm_cost_ops.organization o ON o.id = f.org WHERE {' AND '.join(of_series) or 'true'}",
            **self._values,
            **named,
        )
        for org, series, _, currency, *values in found:
            if (org, series) not in self._numbers:
                self._numbers[org, series] = len(self.series)
                self.series.append(_Series(dict(zip(SERIES_COLUMNS, values, strict=True)), currency))
        query = "SELECT id, digest FROM llm_cost_ops.pricing WHERE id = ANY(%s)"
        for pricing, digest in self._session.rows(query, list({row[2] for row in found})):
            card = kept_card(self._session, digest) if digest else None
            self.compiled[pricing] = None if card is None else CompiledCard(card)

    def rows(self) -> Generator[tuple[Place, int | None, Counts, str]]:
        """The place, cost, counts and JSON of each record."""
        numbers, cost = self._numbers, self._cost
        columns = (
            f"u.org, {cost.series}, g.bucket, {cost.pricing}, {units_sql(cost.cost)}, "
            "u.requests, u.input, u.output, u.cached, u.record"
        )
        wanted = {"series": sorted({series for _, series in numbers})}
        of_series = f"{cost.series} = ANY(%(series)s)"
        query = f"SELECT {columns} {self._source} AND {of_series}"
        with closing(self._session.each(query, self._values | wanted)) as found:
            for org, series, bucket, pricing, units, requests, put_in, put_out, cached, data in found:
                # Of another organization the same number may be another series.
                number = numbers.get((org, series))
                if number is not None:
                    yield (number, bucket, pricing), units, (requests, put_in, put_out, cached), data


def _values(
    group_by: Keys, record: UsageRecord, named: dict[str, str], shares: Iterable[str]
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
