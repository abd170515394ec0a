"""Erasing a user from rows: looked for some rows at a time, and rewritten where they are found.

The counts, costs and keys of a row stay, and so do the sums of rollup, which know no users; kept sums of days
are forgotten with each change. What stood there is overwritten with zeros (PRAGMA secure_delete), and the log
that it was copied to is emptied at the end.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from llm_cost_ops.ledger import audit
from llm_cost_ops.ledger.encoding import decode_usage, encode_texts, encode_usage
from llm_cost_ops.ledger.erasure import HAS_UNKNOWN, entry_to_rewrite, erased_reason, mention_of, without_user
from llm_cost_ops.ledger.sqlite import day_sums
from llm_cost_ops.ledger.sqlite.audit import add_events
from llm_cost_ops.ledger.sqlite.rows import prepare

__all__ = ["empty_log", "erase", "find_mentions"]

_EXAMINED = 20_000
_NAMES = "(instr({0}.record, :mention) OR instr({0}.record, :unknown))"
_MENTIONS = (
    "SELECT u.seq FROM usage u NOT INDEXED WHERE u.seq > :after AND u.seq <= :upto "
    f"AND ({_NAMES.format('u')} "
    f"OR EXISTS (SELECT 1 FROM first_record f WHERE f.usage = u.seq AND {_NAMES.format('f')}) "
    "OR EXISTS (SELECT 1 FROM revision v WHERE v.usage = u.seq "
    f"AND ({_NAMES.format('v')} OR instr(v.reason, :user)))){{}} ORDER BY u.seq"
)
_OF = " AND u.org IN (SELECT id FROM organization WHERE name IN (SELECT value FROM json_each(:names)))"


def find_mentions(
    connection: sqlite3.Connection, user_id: str, organization_ids: Sequence[str], after: int
) -> tuple[list[int], int | None]:
    """The rows behind a number that may name a user, of some thousands of rows, and the last number of these;
    None where there are no more.
    """
    [last] = connection.execute("SELECT ifnull(max(seq), 0) FROM usage").fetchone()
    if after >= last:
        return [], None
    upto = min(after + _EXAMINED, last)
    asked = {
        "after": after,
        "upto": upto,
        "mention": mention_of(user_id),
        "unknown": HAS_UNKNOWN,
        "user": user_id,
        "names": encode_texts(organization_ids).decode(),
    }
    found = connection.execute(_MENTIONS.format(_OF if organization_ids else ""), asked)
    return [seq for (seq,) in found], upto


def erase(
    cursor: sqlite3.Cursor, seqs: Sequence[int], user_id: str, subject: str, at: datetime, actor: str
) -> int:
    """Erase a user from rows, and tell of it under a subject; how many named them."""
    changed: Counter[str] = Counter()
    for seq in seqs:
        organization = _erase_row(cursor, seq, user_id)
        if organization:
            changed[organization] += 1
    for organization in changed:
        day_sums.forget(cursor, organization)
    add_events(cursor, audit.erased(changed, subject, at, actor))
    return changed.total()


def _erase_row(cursor: sqlite3.Cursor, seq: int, user_id: str) -> str:
    """Erase a user from a row and its history; the organization, or "" where they are not named."""
    # A retention may have removed it since it was found.
    found = cursor.execute(
        "SELECT o.name, u.record FROM usage u JOIN organization o ON o.id = u.org "
        "WHERE u.seq = ? AND u.record <> x''",
        (seq,),
    ).fetchone()
    if found is None:
        return ""
    organization, data = found
    changed = False
    before = decode_usage(data)
    record = without_user(before, user_id)
    if record is not before:
        changed = True
        _, (*_, user, tags, labels, text), _ = prepare(entry_to_rewrite(record))
        cursor.execute(
            "UPDATE usage SET user = ?, tags = ?, labels = ?, record = ? WHERE seq = ?",
            (user, tags, labels, text, seq),
        )
    kept = "SELECT rowid, record, '' FROM first_record WHERE usage = ?"
    changed |= _erase_copies(cursor, kept, "UPDATE first_record SET record = ? WHERE usage = ?", seq, user_id)
    kept = "SELECT seq, record, reason FROM revision WHERE usage = ?"
    changed |= _erase_copies(cursor, kept, "UPDATE revision SET record = ? WHERE seq = ?", seq, user_id)
    if changed:
        cursor.execute("INSERT INTO erased VALUES (?) ON CONFLICT DO NOTHING", (seq,))
    return organization if changed else ""


def _erase_copies(cursor: sqlite3.Cursor, query: str, update: str, seq: int, user_id: str) -> bool:
    """Erase a user from what a row was before, and from the reasons for it; whether they were named."""
    changed = False
    for row, data, reason in cursor.execute(query, (seq,)).fetchall():
        before = None if data is None else decode_usage(data)
        record = None if before is None else without_user(before, user_id)
        if record is not None and record is not before:
            changed = True
            cursor.execute(update, (encode_usage(record), row))
        said = erased_reason(reason, user_id)
        if said != reason:
            changed = True
            cursor.execute("UPDATE revision SET reason = ? WHERE seq = ?", (said, row))
    return changed


def empty_log(connection: sqlite3.Connection) -> bool:
    """Move the log into the database and empty it; False where somebody reads or writes."""
    [busy, *_] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy
