from __future__ import annotations

from typing import Any

import pytest

from llm_cost_ops.ledger.types import Filter
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.unit.ledger.making import Sync, entry

NEWEST = ("timestamp", True, 3)


def ids(found: tuple[list[Any], Any]) -> list[str]:
    return [record.idempotency_key for record in found[0]]


@pytest.fixture
def store() -> Any:
    with Sync() as made:
        made.append([entry(n // 4, idempotency_key=str(n), organization_id=f"o{n % 3}") for n in range(10)])
        yield made


def test_pages_stay_where_they_are_while_records_are_added(store: Sync) -> None:
    first = store.list_usage(Filter(), *NEWEST, None, None)
    assert ids(first) == ["9", "8", "7"]
    store.append([entry(99, idempotency_key="newer"), entry(1, idempotency_key="same moment as 7")])
    second = store.list_usage(Filter(), *NEWEST, first[1], None)
    assert ids(second) == ["6", "5", "4"]
    assert ids(store.list_usage(Filter(), *NEWEST, None, 3)) == ["same moment as 7", "7", "6"]


def test_a_position_may_be_used_with_another_size_and_filter(store: Sync) -> None:
    _, position = store.list_usage(Filter(), *NEWEST, None, None)
    rest = store.list_usage(Filter(organization_ids=("o0",)), "timestamp", True, 100, position, None)
    assert ids(rest) == ["6", "3", "0"]
    assert rest[1] is None


@pytest.mark.parametrize(
    "position", ["1.1", f"0.{10**30}", "a.b", "1", "", "1.2.3", "None.None", "1.-1", "١.١"]
)
def test_a_position_that_was_never_given_is_refused(store: Sync, position: str) -> None:
    with pytest.raises(RpcError) as caught:
        store.list_usage(Filter(), *NEWEST, position, None)
    assert caught.value.code is StatusCode.INVALID_ARGUMENT
    assert caught.value.violations[0].field == "cursor"


def test_an_unknown_sort_or_group_is_refused(store: Sync) -> None:
    for call in (
        lambda: store.list_usage(Filter(), "cost", True, 3, None, None),
        lambda: store.summarize(Filter(), ("provider", "1; DROP TABLE usage"), None),
    ):
        with pytest.raises(RpcError) as caught:
            call()
        assert caught.value.code is StatusCode.INVALID_ARGUMENT


def test_values_of_filters_are_only_values(store: Sync) -> None:
    for nasty in ("'", "') OR 1=1 --", "%", "_", "?", ""):
        where = Filter(organization_ids=(nasty,), labels={nasty: nasty}, tags=(nasty,), user_ids=(nasty,))
        assert store.list_usage(where, *NEWEST, None, None) == ([], None)
        assert store.summarize(where, (f"label:{nasty}",), None) == []


def test_pages_and_edges_read_an_index(store: Sync) -> None:
    def plan(columns: str, conditions: str) -> str:
        sql = f"EXPLAIN QUERY PLAN SELECT {columns} FROM usage u WHERE u.org = ? AND {conditions}"
        return store.store._writer._connection.execute(sql, [1] * sql.count("?")).fetchone()[3]

    order = "ORDER BY u.ts DESC, u.seq DESC LIMIT ?"
    equal = plan("u.ts, u.seq", f"u.ts = ? AND u.seq < ? {order}")
    assert equal == "SEARCH u USING COVERING INDEX usage_time (org=? AND ts=? AND seq<?)"
    rest = plan("u.ts, u.seq", f"u.ts < ? {order}")
    assert rest == "SEARCH u USING COVERING INDEX usage_time (org=? AND ts<?)"
    user = plan("u.ts, u.seq", f"u.user IN (?) AND u.ts < ? {order}")
    assert user == "SEARCH u USING COVERING INDEX usage_time (org=? AND ts<?)"
