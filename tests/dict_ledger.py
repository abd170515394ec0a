"""A ledger in dicts and lists: the contract without SQL, by the recipe for a new backend.

It runs the same suite as SQLite (tests/ledger_suite.py). Sums are added up from all records.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from itertools import product
from types import MappingProxyType

from msgspec.structs import replace

from llm_cost_ops._gen.messages import (
    AuditEvent,
    CostStatus,
    RateCard,
    RevisionKind,
    SubmitStatus,
    UsageRecord,
)
from llm_cost_ops.ledger import (
    Amounts,
    ApiKey,
    Appended,
    AuditFilter,
    Change,
    Committed,
    Entry,
    Erased,
    Filter,
    LedgerFigures,
    Price,
    Recorded,
    Repriced,
    Retention,
    Revised,
    Revision,
    audit,
)
from llm_cost_ops.ledger.duplicates import is_duplicate, supersedes, superseding
from llm_cost_ops.ledger.encoding import to_micros, usage_id
from llm_cost_ops.ledger.erasure import as_erased, erased_reason, without_user
from llm_cost_ops.ledger.pieces import pieces_of
from llm_cost_ops.ledger.retention import check_known, removed_duplicate
from llm_cost_ops.ledger.shares import Share, add_share, shares_of
from llm_cost_ops.pricing.cards import kept_form
from llm_cost_ops.pricing.money import UNITS
from llm_cost_ops.pricing.pricebook import CompiledCard
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode, invalid_argument
from llm_cost_ops.rules.cards import overlap_of
from llm_cost_ops.rules.limits import MAX_COUNT, MAX_RECORD_COST, check_amounts
from llm_cost_ops.wire.open_enum import OpenEnum
from tests.dict_rows import FIELDS, Cost, EntryBatch, Row

__all__ = ["DictLedger", "open"]

Keys = tuple[str, ...]
_ANY = Filter(statuses=tuple(status.value for status in CostStatus))


def open(url: str, *, durability: str, group_commit: bool) -> DictLedger:  # noqa: A001 - each backend has it
    """An empty ledger, whatever the URL says behind dict://."""
    return DictLedger()


def _plain(record: UsageRecord) -> UsageRecord:
    """The record with what a caller's enums hold in their place, as a database keeps it."""
    found = {name: getattr(record, name) for name in record.__struct_fields__}
    odd = [name for name, each in found.items() if isinstance(each, Enum) and not isinstance(each, OpenEnum)]
    return replace(record, **{name: found[name].value for name in odd})


class DictLedger:
    """A Ledger in this object alone, safe for threads; it is its own Sums."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._rows: list[Row] = []
        self._by_id: dict[tuple[str, str], Row] = {}
        self._commits: list[tuple[Row, int]] = []
        self._consumers: dict[str, int] = {}
        self._cards: list[tuple[Keys, bytes, RateCard]] = []
        self._card_keys: dict[tuple[str, str], tuple[bytes, RateCard]] = {}
        self._kept: dict[bytes, RateCard] = {}
        self._closed = False
        self._appends = 0
        self._audit: list[AuditEvent] = []
        self._retentions: dict[str, Retention] = {}
        self.keys = DictKeys(self._add_events)

    @property
    def sums(self) -> DictLedger:
        return self

    def _begin(self, context: CallContext) -> None:
        context.check_deadline()
        if self._closed:
            raise RpcError(StatusCode.FAILED_PRECONDITION, "the ledger is closed")

    def _add_events(self, events: Iterable[AuditEvent]) -> None:
        for event in events:
            self._audit.append(replace(event, number=len(self._audit) + 1))

    async def audit_events(
        self, where: AuditFilter, limit: int, after: str | None, offset: int | None, context: CallContext
    ) -> tuple[list[AuditEvent], str | None]:
        self._begin(context)
        last = len(self._audit) if after is None else _number(after, len(self._audit) + 1) - 1
        found = [
            event
            for event in reversed(self._audit[:last])
            if (not where.organization_ids or event.organization_id in where.organization_ids)
            and (not where.actions or event.action in where.actions)
            and (not where.actors or event.actor in where.actors)
            and (not where.subjects or event.subject in where.subjects)
            and event.made_at is not None
            and (where.start is None or where.start <= event.made_at)
            and (where.end is None or event.made_at < where.end)
        ][offset or 0 :]
        return found[:limit], str(found[limit - 1].number) if len(found) > limit else None

    async def append(
        self, entries: Sequence[Entry], context: CallContext, revision: int | None = None
    ) -> list[Appended] | None:
        self._begin(context)
        for entry in entries:
            if max(entry.record.input_tokens or 0, entry.record.output_tokens or 0) > MAX_COUNT:
                raise invalid_argument("input_tokens", f"must be at most {MAX_COUNT:,}")
            _check_cost(entry.units)
        with self._lock:
            if revision is not None and revision != len(self._cards):
                return None
            self._appends += 1
            return [self._append(entry) for entry in entries]

    def batch(self, key: str = "") -> EntryBatch:
        return EntryBatch(self.append, key)

    def _append(self, entry: Entry) -> Appended:
        entry = replace(entry, record=_plain(entry.record))
        organization, attempt = entry.record.organization_id, 0
        made = usage_id(organization, entry.key)[0]
        while (found := self._by_id.get((organization, made))) is not None and found.key != entry.key:
            attempt += 1
            made = usage_id(organization, entry.key, attempt)[0]
        if found is not None and found.removed:
            return removed_duplicate(made, entry.ingested_at)
        status, row = SubmitStatus.CREATED, Row(entry, made)
        if found is not None and found.erased:
            row.sent = as_erased(row.sent, found.sent)
        if found is not None and found.may_be_superseded() and supersedes(row.sent, found.sent):
            record = superseding(row.sent, found.sent)
            self._revise(
                found, Cost(entry.units, entry.by, entry.ingested_at, record, RevisionKind.SUPERSEDED)
            )
            found.sent, found.answer = record, found.costs[-1:]
            row = found
        elif found is not None:
            same = is_duplicate(row.sent, found.sent, row.timestamp, found.timestamp)
            status, row = SubmitStatus.DUPLICATE if same else SubmitStatus.CONFLICT, found
        else:
            self._rows.append(row)
            self._by_id[organization, made] = row
            self._commits.append((row, 1))
            self._keep(entry.by)
        units, by, *_ = row.answer[0]
        return Appended(status, row.id, units, by.currency, by.status, row.ingested_at)

    def _revise(self, row: Row, cost: Cost) -> None:
        row.costs.append(cost)
        self._commits.append((row, len(row.costs)))
        self._keep(cost.by)

    def _keep(self, by: Pricing) -> None:
        if by.digest and by.card is not None:
            self._kept.setdefault(by.digest, kept_form(by.card))

    async def list_usage(
        self,
        where: Filter,
        sort: str,
        descending: bool,
        limit: int,
        after: str | None,
        offset: int | None,
        context: CallContext,
    ) -> tuple[list[UsageRecord], str | None]:
        self._begin(context)
        with self._lock:
            first = datetime.min.replace(tzinfo=UTC)

            def place(seq: int) -> tuple[datetime, int]:
                return (self._rows[seq].timestamp if sort == "timestamp" else first, seq)

            found = [place(seq) for seq, row in enumerate(self._rows) if row.is_there(where)]
            found.sort(reverse=descending)
            if after is not None:
                edge = place(_number(after, len(self._rows)))
                found = [other for other in found if (other < edge if descending else other > edge)]
            page = [seq for _, seq in found[offset or 0 :][: limit + 1]]
            position = str(page[limit - 1]) if len(page) > limit else None
            rows = [self._rows[seq] for seq in page[:limit]]
            return [row.record(len(row.costs)) for row in rows], position

    async def get_cost(self, organization_id: str, usage_id: str, context: CallContext) -> Recorded | None:
        self._begin(context)
        with self._lock:
            row = self._by_id.get((organization_id, usage_id))
            if row is None or row.removed:
                return None
            units, by, at, _, kind, reason, _ = row.costs[-1]
            return Recorded(
                record=row.record(len(row.costs)),
                revision=len(row.costs),
                status=CostStatus(by.status),
                currency=by.currency,
                units=units,
                card_id=by.card_id,
                card_version=by.card_version,
                origin_version=by.origin_version,
                fallbacks=tuple(by.fallbacks),
                card=self._kept.get(by.digest),
                digest=by.digest,
                calculated_at=at,
                kind=kind,
                reason=reason,
            )

    async def revise(self, revision: Revision, context: CallContext) -> bool:
        self._begin(context)
        _check_cost(revision.units)
        with self._lock:
            row = self._by_id.get((revision.organization_id, revision.usage_id))
            if row is None or row.removed or len(row.costs) != revision.after:
                return False
            said = (revision.kind, revision.reason, revision.actor)
            record = revision.record or row.now
            self._revise(row, Cost(revision.units, revision.by, revision.made_at, record, *said))
            self._add_events([audit.revised(revision)])
            return True

    async def erase_user(
        self,
        user_id: str,
        organization_ids: tuple[str, ...],
        subject: str,
        after: str | None,
        context: CallContext,
        *,
        actor: str = "",
    ) -> Erased:
        self._begin(context)
        with self._lock:
            first = 0 if after is None else _number(after, len(self._rows)) + 1
            if first >= len(self._rows):
                return Erased(0, None)
            row = self._rows[first]
            organization = row.sent.organization_id
            if row.removed or (organization_ids and organization not in organization_ids):
                return Erased(0, str(first))
            sent = without_user(row.sent, user_id)
            costs = [
                cost._replace(
                    record=without_user(cost.record, user_id), reason=erased_reason(cost.reason, user_id)
                )
                for cost in row.costs
            ]
            if sent is row.sent and all(map(_is_same, costs, row.costs)):
                return Erased(0, str(first))
            in_answer = row.costs.index(row.answer[0])
            row.sent, row.costs, row.answer, row.erased = sent, costs, [costs[in_answer]], True
            self._add_events(audit.erased({organization: 1}, subject, context.now(), actor))
            return Erased(1, str(first))

    async def revisions(self, organization_id: str, usage_id: str, context: CallContext) -> list[Revised]:
        self._begin(context)
        with self._lock:
            row = self._by_id.get((organization_id, usage_id))
            return [
                Revised(
                    number=number,
                    kind=cost.kind,
                    record=row.record(number),
                    reason=cost.reason,
                    actor=cost.actor,
                    made_at=cost.calculated_at,
                )
                for number, cost in enumerate(row.costs if row else (), 1)
                if row and not row.removed
            ]

    async def reprice(
        self,
        where: Filter,
        price: Price,
        after: str | None,
        limit: int,
        context: CallContext,
        *,
        dry_run: bool,
        actor: str = "",
    ) -> Repriced:
        self._begin(context)
        with self._lock:
            first = 0 if after is None else _number(after, len(self._rows)) + 1
            seqs = [seq for seq in range(first, len(self._rows)) if self._rows[seq].is_there(where)][:limit]
            changes, new = [], []
            for row in (self._rows[seq] for seq in seqs):
                before = row.costs[-1]
                if before.by.status == CostStatus.VOIDED:
                    continue
                priced = price(replace(row.now, timestamp=row.timestamp))
                by = priced.by
                if (by.status, by.currency, priced.units) == (
                    before.by.status,
                    before.by.currency,
                    before.units,
                ):
                    continue
                _check_cost(priced.units)
                at = datetime.fromtimestamp(context.runtime.now(), UTC)
                kind = RevisionKind.REPRICED
                new.append((row, Cost(priced.units, by, at, row.now, kind, actor=actor)))
                changes.append(
                    Change(
                        provider=row.now.provider,
                        model_id=row.now.model_id,
                        units_before=before.units,
                        currency_before=before.by.currency,
                        units_after=priced.units,
                        currency_after=by.currency,
                    )
                )
            for row, cost in () if dry_run else new:
                self._revise(row, cost)
            if new and not dry_run:
                touched = Counter(row.now.organization_id for row, _ in new)
                self._add_events(audit.repriced(touched, new[0][1].calculated_at, actor))
            return Repriced(len(seqs), changes, str(seqs[-1]) if seqs else None)

    async def committed(
        self, after: str | None, limit: int, context: CallContext
    ) -> tuple[list[Committed], str | None]:
        self._begin(context)
        with self._lock:
            first = 0 if after is None else _number(after, len(self._commits)) + 1
            behind = list(enumerate(self._commits))[first:]
            page = [(at, *commit) for at, commit in behind if not commit[0].removed][:limit]
            found = [Committed(row.record(number), number) for _, row, number in page]
            return found, str(page[-1][0]) if page else after

    async def consumer_position(self, name: str, context: CallContext) -> str | None:
        self._begin(context)
        found = self._consumers.get(name)
        return None if found is None else str(found)

    async def move_consumer(self, name: str, position: str, context: CallContext) -> None:
        self._begin(context)
        with self._lock:
            number = _number(position, len(self._commits))
            self._consumers[name] = max(number, self._consumers.get(name, number))

    async def add_card(
        self, card: RateCard, key: str, fingerprint: bytes, context: CallContext, *, actor: str = ""
    ) -> tuple[RateCard, SubmitStatus]:
        self._begin(context)
        with self._lock:
            org = card.organization_id
            if key and (found := self._card_keys.get((org, key))) is not None:
                same = found[0] == fingerprint
                return found[1], SubmitStatus.DUPLICATE if same else SubmitStatus.CONFLICT
            names = (org, card.provider, card.model_id, card.region, card.service_tier, card.processing)
            line = (*names, card.speed, card.currency)
            versions = [(kept, added) for other, kept, added in self._cards if other == line]
            status = SubmitStatus.DUPLICATE
            if versions and versions[-1][0] == fingerprint:
                added = versions[-1][1]
            else:
                broken = overlap_of(card, [other for _, other in versions])
                if broken is not None:
                    raise invalid_argument(*broken)
                status, added = SubmitStatus.CREATED, replace(card, version=len(versions) + 1)
                self._cards.append((line, fingerprint, added))
                self._add_events([audit.card_added(added, context.now(), actor)])
            if key:
                self._card_keys[org, key] = (fingerprint, added)
            return added, status

    async def get_card(self, card_id: str, context: CallContext) -> RateCard | None:
        self._begin(context)
        return next((card for _, _, card in self._cards if card.id == card_id), None)

    async def all_cards(
        self, context: CallContext, known: Mapping[str, RateCard] = MappingProxyType({})
    ) -> list[RateCard]:
        self._begin(context)
        first = datetime.min.replace(tzinfo=UTC)
        return sorted(
            (card for _, _, card in self._cards),
            key=lambda card: (card.provider, card.model_id, card.effective_from or first, card.version),
        )

    async def cards_revision(self, context: CallContext) -> int:
        self._begin(context)
        return len(self._cards)

    async def check(self, context: CallContext) -> None:
        self._begin(context)

    async def figures(self, context: CallContext) -> LedgerFigures:
        self._begin(context)
        return LedgerFigures(commits=self._appends, queued=0, unfolded_rows=0, bytes=1)

    async def aclose(self) -> None:
        self._closed = True

    async def summarize(
        self,
        where: Filter,
        group_by: Keys,
        buckets: Sequence[tuple[datetime, datetime]] | None,
        context: CallContext,
    ) -> list[tuple[Keys, int, Amounts]]:
        def whole(row: Row) -> dict[str, Share]:
            sent, units = row.now, row.costs[-1].units
            tokens = (sent.input_tokens or 0, sent.output_tokens or 0, sent.cached_tokens)
            return {"": (*tokens, units or 0, units is None)}

        def by_meter(row: Row) -> dict[str, Share]:
            units, by, *_ = row.costs[-1]
            card = self._kept.get(by.digest)
            return shares_of(row.now, None if card is None else CompiledCard(card), units)

        share_of = by_meter if "meter" in group_by else whole
        return self._summarize(where, group_by, buckets, context, share_of)

    def _summarize(
        self,
        where: Filter,
        group_by: Keys,
        buckets: Sequence[tuple[datetime, datetime]] | None,
        context: CallContext,
        share_of: Callable[[Row], dict[str, Share]],
    ) -> list[tuple[Keys, int, Amounts]]:
        self._begin(context)
        self._check_known(where, group_by, buckets)
        totals: dict[tuple[int, Keys, str], Amounts] = {}
        always = [(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))]
        with self._lock:
            for row in self._rows:
                if not row.passes(where):
                    continue
                shares = share_of(row)
                values: list[Iterable[str]] = [
                    shares if name == "meter" else row.values(name) for name in group_by
                ]
                for index, (low, high) in enumerate(always if buckets is None else buckets):
                    if not low <= row.timestamp < high:
                        continue
                    for keys in product(*values):
                        share = shares[keys[group_by.index("meter")] if "meter" in group_by else ""]
                        currency = row.costs[-1].by.currency
                        reported = row.costs[-1].by.status == CostStatus.REPORTED
                        sums = totals.setdefault((index, keys, currency), Amounts(currency=currency))
                        add_share(sums, share, row.now.request_count or 1, reported=reported)
        for sums in totals.values():
            check_amounts(sums)
        return [(keys, bucket, totals[bucket, keys, code]) for bucket, keys, code in sorted(totals)]

    async def occupied(self, where: Filter, width: int, context: CallContext) -> list[int]:
        self._begin(context)
        return sorted(
            {
                to_micros(row.timestamp) // width
                for row in self._rows
                if (not where.organization_ids or row.sent.organization_id in where.organization_ids)
                and (where.start is None or where.start <= row.timestamp)
                and (where.end is None or row.timestamp < where.end)
            }
        )

    async def count(self, where: Filter, context: CallContext, max_rows: int | None = None) -> int | None:
        self._begin(context)
        return sum(row.is_there(where) for row in self._rows)

    async def retentions(self, context: CallContext) -> list[Retention]:
        self._begin(context)
        return [self._retentions[name] for name in sorted(self._retentions)]

    async def set_retention(
        self, organization_id: str, days: int, context: CallContext, *, actor: str = ""
    ) -> None:
        self._begin(context)
        before = self._retentions.get(organization_id) or Retention(organization_id=organization_id, days=0)
        self._retentions[organization_id] = replace(before, days=days)
        if days != before.days:
            self._add_events([audit.retention_set(organization_id, days, context.now(), actor)])

    async def remove_older(
        self, organization_id: str, before: datetime, context: CallContext, *, dry_run: bool, actor: str = ""
    ) -> int:
        self._begin(context)
        older = [row for row in self._rows if row.is_there(_ANY) and row.timestamp < before]
        older = [row for row in older if row.sent.organization_id == organization_id]
        if dry_run or not older:
            return len(older)
        for row in older:
            row.removed = True
        kept = self._retentions[organization_id]
        if kept.removed_before is None or kept.removed_before < before:
            self._retentions[organization_id] = replace(kept, removed_before=before)
            self._add_events([audit.retention_applied(organization_id, before, context.now(), actor)])
        return len(older)

    def _check_known(
        self,
        where: Filter,
        group_by: tuple[str, ...],
        buckets: Sequence[tuple[datetime, datetime]] | None,
    ) -> None:
        wanted = where.organization_ids
        removed = {
            name: to_micros(each.removed_before)
            for name, each in self._retentions.items()
            if each.removed_before is not None and (not wanted or name in wanted)
        }
        by_row = bool(where.user_ids or where.tags or where.labels)
        by_row |= any(name not in FIELDS and name != "status" for name in group_by) or "user" in group_by
        check_known(removed, pieces_of(where, buckets), needs_rows=by_row)


class DictKeys:
    """The KeyStore of a DictLedger."""

    def __init__(self, add_events: Callable[[Sequence[AuditEvent]], None]) -> None:
        self._audit = add_events
        self._keys: dict[str, ApiKey] = {}
        self._secret = secrets.token_bytes(32)

    async def any(self, context: CallContext) -> bool:
        return bool(self._keys)

    async def find(self, key_id: str, context: CallContext) -> ApiKey | None:
        return self._keys.get(key_id)

    async def all(self, context: CallContext) -> list[ApiKey]:
        return sorted(self._keys.values(), key=lambda key: (key.created_at, key.id))

    async def secret(self, context: CallContext) -> bytes:
        return self._secret

    async def add(self, key: ApiKey, context: CallContext, *, actor: str = "") -> None:
        if key.id in self._keys:
            raise RpcError(StatusCode.ALREADY_EXISTS, f"there is a key {key.id!r} already")
        self._keys[key.id] = key
        self._audit(audit.key_added(key, actor))

    async def revoke(
        self, key_id: str, at: datetime, context: CallContext, *, actor: str = ""
    ) -> ApiKey | None:
        key = self._keys.get(key_id)
        if key is not None and key.revoked_at is None:
            key = self._keys[key_id] = replace(key, revoked_at=at)
            self._audit(audit.key_revoked(key, at, actor))
        return key


def _is_same(one: Cost, other: Cost) -> bool:
    return one.record is other.record and one.reason == other.reason


def _check_cost(units: int | None) -> None:
    if units is not None and abs(units) > MAX_RECORD_COST * UNITS:
        raise invalid_argument("a record", f"must cost at most {MAX_RECORD_COST:,}")


def _number(position: str, count: int) -> int:
    if not (position.isascii() and position.isdigit() and int(position) < count):
        raise invalid_argument("position", "is not one that this ledger gave")
    return int(position)
