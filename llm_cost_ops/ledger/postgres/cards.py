"""Price cards: added as versions, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from llm_cost_ops._gen.messages import RateCard, SubmitStatus
from llm_cost_ops.ledger import audit
from llm_cost_ops.ledger.encoding import card_line, card_of, card_order, struct_decoder
from llm_cost_ops.ledger.postgres import schema
from llm_cost_ops.ledger.postgres.audit import add_events
from llm_cost_ops.ledger.postgres.connection import Session
from llm_cost_ops.ledger.postgres.rows import struct_text
from llm_cost_ops.pricing.cards import kept_form
from llm_cost_ops.rpc.status import invalid_argument
from llm_cost_ops.rules.cards import overlap_of

__all__ = ["add_card", "all_cards", "get_card", "keep_card", "kept_card", "revision"]

_cards = struct_decoder(RateCard)


def add_card(
    session: Session, card: RateCard, key: str, fingerprint: bytes, at: datetime, actor: str
) -> tuple[RateCard, SubmitStatus]:
    """Add a card under the next version of its line, unless its key or its content was there before.

    INVALID_ARGUMENT when its interval and that of another card both claim a time.
    """
    with session.transaction():
        # Appends hold it shared from before they look at the revision until they are committed: what was
        # priced without this card is in the ledger when it is added, or is not written at all.
        session.run("SELECT pg_advisory_xact_lock(%s)", schema.LOCK_CARDS)
        added = _add(session, card, key, fingerprint)
        if added[1] == SubmitStatus.CREATED:
            add_events(session, [audit.card_added(added[0], at, actor)])
        return added


def _add(session: Session, card: RateCard, key: str, fingerprint: bytes) -> tuple[RateCard, SubmitStatus]:
    org = card.organization_id
    if key:
        rows = session.rows(
            "SELECT k.fingerprint, c.card FROM llm_cost_ops.card_key k JOIN llm_cost_ops.card c "
            "ON c.seq = k.card WHERE k.org = %s AND k.key = %s",
            org,
            key,
        )
        if rows:
            same = rows[0][0] == fingerprint
            return _cards.decode(rows[0][1]), SubmitStatus.DUPLICATE if same else SubmitStatus.CONFLICT
    line = card_line(card)
    versions = session.rows(
        "SELECT seq, version, fingerprint, card FROM llm_cost_ops.card WHERE line = %s ORDER BY version", line
    )
    if versions and versions[-1][2] == fingerprint:
        seq, added, status = versions[-1][0], _cards.decode(versions[-1][3]), SubmitStatus.DUPLICATE
    else:
        broken = overlap_of(card, [_cards.decode(data) for *_, data in versions])
        if broken is not None:
            raise invalid_argument(*broken)
        version = versions[-1][1] + 1 if versions else 1
        added, status = msgspec.structs.replace(card, version=version), SubmitStatus.CREATED
        [(seq,)] = session.rows(
            "INSERT INTO llm_cost_ops.card (id, line, version, fingerprint, card) "
            "VALUES (%s, %s, %s, %s, %s) RETURNING seq",
            card.id,
            line,
            version,
            fingerprint,
            struct_text(added),
        )
    if key:
        session.run(
            "INSERT INTO llm_cost_ops.card_key (org, key, fingerprint, card) VALUES (%s, %s, %s, %s)",
            org,
            key,
            fingerprint,
            seq,
        )
    return added, status


def get_card(session: Session, card_id: str) -> RateCard | None:
    """The card with an id, or None."""
    rows = session.rows("SELECT card FROM llm_cost_ops.card WHERE id = %s", card_id)
    return _cards.decode(rows[0][0]) if rows else None


def keep_card(session: Session, digest: bytes, card: RateCard) -> None:
    """Keep what receipts need of a card, once for each digest."""
    session.run(
        "INSERT INTO llm_cost_ops.kept_card (digest, card) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        digest,
        struct_text(kept_form(card)),
    )


def kept_card(session: Session, digest: bytes) -> RateCard | None:
    """The card that was kept under a digest, or None."""
    rows = session.rows("SELECT card FROM llm_cost_ops.kept_card WHERE digest = %s", digest)
    return card_of(rows[0][0]) if rows else None


def all_cards(session: Session, known: Mapping[str, RateCard]) -> list[RateCard]:
    """Every card, by provider, model, date and version; those that are known, by their ids, as they are."""
    rows = session.rows("SELECT id, card FROM llm_cost_ops.card ORDER BY seq")
    cards: list[RateCard] = [known.get(card_id) or _cards.decode(data) for card_id, data in rows]
    return sorted(cards, key=card_order)


def revision(session: Session) -> int:
    """A number that grows when a card is added."""
    [(number,)] = session.rows("SELECT coalesce(max(seq), 0) FROM llm_cost_ops.card")
    return int(number)
