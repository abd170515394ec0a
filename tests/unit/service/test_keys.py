"""Keys in themselves: what they look like, what is kept of them, and how long they hold."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops._gen.methods import GET_HEALTH
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.rpc.context import CallContext, Metadata, drive
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service.access import keys
from llm_cost_ops.service.access.keys import create_key, key_id_of, principal_of, revoke_key
from llm_cost_ops.service.access.tenancy import Role


class Clock(SyncRuntime):
    def __init__(self) -> None:
        self.moved = 0.0

    def now(self) -> float:
        return super().now() + self.moved


@pytest.fixture
def context() -> CallContext:
    return CallContext(GET_HEALTH, Clock(), Metadata())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteLedger]:
    store = SqliteLedger(str(tmp_path / "keys.db"))
    yield store
    drive(store.aclose())


def create(store: SqliteLedger, context: CallContext, **options: Any) -> tuple[Any, str]:
    return drive(create_key(store.keys, context, **{"organizations": ["acme"], **options}))


def whose(store: SqliteLedger, text: str, context: CallContext) -> Any:
    return drive(principal_of(store.keys, text, context))


def test_a_key_has_256_random_bits_behind_its_id(store: SqliteLedger, context: CallContext) -> None:
    made = [create(store, context) for _ in range(20)]
    for key, text in made:
        match = re.fullmatch(r"lco_([a-z2-7]{8})_([a-z2-7]{52})", text)
        assert match is not None
        assert match[1] == key.id == key_id_of(text) == key_id_of(key.id) == key_id_of(f"lco_{key.id}")
        assert match[2] not in repr(key)
    assert len({text for _, text in made}) == 20


def test_the_database_holds_neither_key_nor_its_secret(
    tmp_path: Path, store: SqliteLedger, context: CallContext
) -> None:
    _, text = create(store, context)
    drive(store.aclose())
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert text[4:12].encode() in held
    assert text[13:].encode() not in held


def test_a_key_of_one_database_is_none_of_another(tmp_path: Path, context: CallContext) -> None:
    """Not even when its row is copied: hashes are keyed with what belongs to one database."""
    paths = [tmp_path / "a.db", tmp_path / "b.db"]
    stores = [SqliteLedger(str(path)) for path in paths]
    (_, text), _ = (create(store, context) for store in stores)
    with contextlib.closing(sqlite3.connect(paths[0])) as source:
        rows = source.execute("SELECT * FROM api_key").fetchall()
    with sqlite3.connect(paths[1]) as connection:
        connection.executemany("INSERT INTO api_key VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.close()
    assert whose(stores[0], text, context) is not None
    assert whose(stores[1], text, context) is None
    for store in stores:
        drive(store.aclose())


def test_whose_key_it_is(store: SqliteLedger, context: CallContext) -> None:
    key, text = create(store, context, organizations=["b", "a", "b"], role="reader", name="for the page")
    assert key.organizations == ("a", "b")
    found = whose(store, text, context)
    assert (found.key_id, found.role, found.organizations) == (key.id, Role.READER, {"a", "b"})
    _, text = create(store, context, organizations=["*"], role="admin")
    assert whose(store, text, context).organizations is None
    assert [(kept.name, kept.role) for kept in drive(store.keys.all(context))] == [
        ("for the page", "reader"),
        ("", "admin"),
    ]


def test_a_key_holds_until_it_expires(store: SqliteLedger, context: CallContext) -> None:
    until = datetime.now(UTC) + timedelta(days=1)
    _, text = create(store, context, expires_at=until)
    assert whose(store, text, context) is not None
    context.runtime.moved = 86_400 + 1
    context.moment = None  # another call: each has one now
    assert whose(store, text, context) is None
    with pytest.raises(RpcError, match="expires must lie in the future"):
        create(store, context, expires_at=until)


def test_a_revoked_key_stays_revoked(store: SqliteLedger, context: CallContext) -> None:
    key, text = create(store, context)
    first = drive(revoke_key(store.keys, key.id, context))
    assert whose(store, text, context) is None
    context.runtime.moved = 3600
    assert drive(revoke_key(store.keys, text, context)).revoked_at == first.revoked_at
    for unknown in ("aaaaaaaa", "", "x", "lco_", "AAAAAAAA", "a\0aaaaaa"):
        with pytest.raises(RpcError) as caught:
            drive(revoke_key(store.keys, unknown, context))
        assert caught.value.code is StatusCode.NOT_FOUND


def test_a_key_nearly_right_is_wrong(store: SqliteLedger, context: CallContext) -> None:
    key, text = create(store, context)
    other, _ = create(store, context)
    last = "a" if text[-1] != "a" else "b"
    nearly = [
        text[:-1] + last,
        text[:-1],
        text + "a",
        text.upper(),
        text.replace(key.id, other.id),
        f"lco_{key.id}_",
        "",
        f"{text}\n",
    ]
    for wrong in nearly:
        assert whose(store, wrong, context) is None, wrong


def test_an_id_that_is_taken_is_not_given_again(
    store: SqliteLedger, context: CallContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = iter(["samesame", "s" * 52, "samesame", "t" * 52, "otherone", "u" * 52])
    monkeypatch.setattr(keys, "_random_text", lambda size: next(texts))
    assert [create(store, context)[0].id for _ in range(2)] == ["samesame", "otherone"]
    assert whose(store, f"lco_samesame_{'s' * 52}", context) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"organizations": []}, "organization must name at least one"),
        ({"organizations": [""]}, "organization must have 1 to 100"),
        ({"organizations": ["x" * 101]}, "organization must have 1 to 100"),
        ({"organizations": ["a\nb"]}, "organization must have 1 to 100"),
        ({"role": "root"}, "role must be metrics, reader, writer or admin, not 'root'"),
        ({"name": "x" * 101}, "name must have at most 100"),
        ({"name": "a\x1b[2J"}, "name must have at most 100"),
    ],
)
def test_what_no_key_can_have(
    store: SqliteLedger, context: CallContext, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RpcError, match=message):
        create(store, context, **options)
    assert not drive(store.keys.any(context))
