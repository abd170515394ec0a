"""Price cards: added as versions, never changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

import msgspec

from llm_cost_ops._gen.messages import RateCard, SubmitStatus
from llm_cost_ops.ledger.encoding import card_line, card_of, card_order, encode_struct, struct_decoder
from llm_cost_ops.pricing.cards import kept_form
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.rules.cards import overlap_of

__all__ = ["add_card", "all_cards", "get_card", "keep_card", "kept_card", "revision"]

_cards = struct_decoder(RateCard)


def add_card(
    cursor: sqlite3.Cursor, card: RateCard, key: str, fingerprint: bytes
) -> tuple[RateCard, SubmitStatus]:
    """Add a card under the next version of its line, unless its key or its content was there before.

    INVALID_ARGUMENT when its interval and that of another card both claim a time.
    """
    org = card.organization_id
    if key:
        row = cursor.execute(
            "SELECT k.fingerprint, c.card FROM card_key k JOIN card c ON c.seq = k.card "
            "WHERE k.org = ? AND k.key = ?",
            (org, key),
        ).fetchone()
        if row is not None:
            same = row[0] == fingerprint
            return _cards.decode(row[1]), SubmitStatus.DUPLICATE if same else SubmitStatus.CONFLICT
    line = card_line(card)
    latest = cursor.execute(
        "SELECT seq, version, fingerprint, card FROM card WHERE line = ? ORDER BY version DESC LIMIT 1",
        (line,),
    ).fetchone()
    if latest is not None and latest[2] == fingerprint:
        seq, added, status = latest[0], _cards.decode(latest[3]), SubmitStatus.DUPLICATE
    else:
        _refuse_overlaps(cursor, card, line)
        version = latest[1] + 1 if latest is not None else 1
        added, status = msgspec.structs.replace(card, version=version), SubmitStatus.CREATED
        cursor.execute(
            "INSERT INTO card (id, line, version, fingerprint, card) VALUES (?, ?, ?, ?, ?)",
            (card.id, line, version, fingerprint, encode_struct(added)),
        )
        seq = cursor.lastrowid
    if key:
        cursor.execute("INSERT INTO card_key VALUES (?, ?, ?, ?)", (org, key, fingerprint, seq))
    return added, status


def _refuse_overlaps(cursor: sqlite3.Cursor, card: RateCard, line: str) -> None:
    rows = cursor.execute("SELECT card FROM card WHERE line = ?", (line,)).fetchall()
    broken = overlap_of(card, [_cards.decode(data) for (data,) in rows])
    if broken is not None:
        message = f"{broken[0]} {broken[1]}"
        raise RpcError(StatusCode.INVALID_ARGUMENT, message, violations=[Violation(*broken)])


def get_card(connection: sqlite3.Connection, card_id: str) -> RateCard | None:
    """The card with an id, or None."""
    row = connection.execute("SELECT card FROM card WHERE id = ?", (card_id,)).fetchone()
    return None if row is None else _cards.decode(row[0])


def keep_card(cursor: sqlite3.Cursor, digest: bytes, card: RateCard) -> None:
    """Keep what receipts need of a card, once for each digest."""
    data = encode_struct(kept_form(card))
    cursor.execute("INSERT INTO kept_card VALUES (?, ?) ON CONFLICT DO NOTHING", (digest, data))


def kept_card(connection: sqlite3.Connection, digest: bytes) -> RateCard | None:
    """The card that was kept under a digest, or None."""
    row = connection.execute("SELECT card FROM kept_card WHERE digest = ?", (digest,)).fetchone()
    return None if row is None else card_of(row[0])


def all_cards(connection: sqlite3.Connection, known: Mapping[str, RateCard]) -> list[RateCard]:
    """Every card, by provider, model, date and version; those that are known, by their ids, as they are."""
    rows = connection.execute("SELECT id, card FROM card ORDER BY seq")
    cards: list[RateCard] = [known.get(card_id) or _cards.decode(data) for card_id, data in rows]
    return sorted(cards, key=card_order)


def revision(connection: sqlite3.Connection | sqlite3.Cursor) -> int:
    """A number that grows when a card is added."""
    [number] = connection.execute("SELECT ifnull(max(seq), 0) FROM card").fetchone()
    return int(number)
