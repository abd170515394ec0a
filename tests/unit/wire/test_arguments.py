"""What generated methods do to their arguments: coercion and idempotency keys."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from llm_cost_ops._gen.messages import (
    BatchSubmitUsageRequest,
    CreatePriceRequest,
    Operation,
    SubmitUsageRequest,
    UsageRecord,
)
from llm_cost_ops.rpc.context import fill_idempotency_key
from llm_cost_ops.wire import coerce

SUBMIT = fill_idempotency_key("usage", "idempotency_key")
BATCH = fill_idempotency_key("records", "idempotency_key")


@pytest.mark.parametrize(
    ("coerced", "value"),
    [
        (coerce.decimal("0.10"), Decimal("0.10")),
        (coerce.decimal(3), Decimal(3)),
        (coerce.decimal("1e5"), "1e5"),
        (coerce.decimal(0.5), 0.5),
        (coerce.decimal(True), True),
        (coerce.member(Operation, "CHAT"), Operation.CHAT),
        (coerce.member(Operation, "new"), "new"),
        (coerce.member(Operation, "99"), "99"),
        (coerce.member(Operation, "1"), Operation.CHAT),
        (coerce.member(Operation, Operation("new")), Operation("new")),
        (coerce.members(Operation, ["chat", "new"]), [Operation.CHAT, "new"]),
        (coerce.member(Operation, 5), 5),
        (coerce.members(Operation, "chat"), [Operation.CHAT]),
        (coerce.members(Operation, ("chat", 5)), [Operation.CHAT, 5]),
        (coerce.instant(datetime(2026, 1, 1)), datetime(2026, 1, 1, tzinfo=UTC)),
        (coerce.instant(date(2026, 1, 1)), datetime(2026, 1, 1, tzinfo=UTC)),
        (coerce.instant("2026-01-01"), datetime(2026, 1, 1, tzinfo=UTC)),
        (coerce.instant("2026-01-01T10:30"), datetime(2026, 1, 1, 10, 30, tzinfo=UTC)),
        (coerce.instant("2026-01-01 10:30Z"), datetime(2026, 1, 1, 10, 30, tzinfo=UTC)),
        (coerce.instant("2026-01-01T10:30:05"), datetime(2026, 1, 1, 10, 30, 5, tzinfo=UTC)),
        (coerce.instant("2026-01-01T10:30+02:00"), datetime(2026, 1, 1, 8, 30, tzinfo=UTC)),
        (coerce.instant("2026-02-30"), "2026-02-30"),
        (coerce.instant("2026-01-01T24:00"), "2026-01-01T24:00"),
        (coerce.instant("20260101"), "20260101"),
        (coerce.instant("x"), "x"),
        (coerce.moment(date(2026, 1, 1)), "2026-01-01"),
        (coerce.moment(datetime(2026, 1, 1)), "2026-01-01T00:00:00Z"),
        (coerce.moment(datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))), "2026-01-01T00:00:00Z"),
        (coerce.moment("2026"), "2026"),
        (coerce.moment(5), 5),
        (coerce.texts("one"), ["one"]),
        (coerce.texts(("a", "b")), ["a", "b"]),
        (coerce.texts(x for x in "ab"), ["a", "b"]),
        (coerce.texts(5), 5),
    ],
)
def test_arguments_become_fields_or_stay_as_they_are(coerced: Any, value: Any) -> None:
    assert coerced == value
    assert type(coerced) is type(value)


def test_a_time_that_utc_cannot_hold_stays() -> None:
    far = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))
    assert coerce.instant(far) is far
    assert coerce.moment(far) == "0001-01-01T00:00:00+05:00"


def test_a_record_or_its_fields() -> None:
    record = UsageRecord(provider="p")
    assert coerce.overlaid(record, UsageRecord()) is record
    over = coerce.overlaid(record, UsageRecord(provider="q", tags=["t"], input_tokens=0))
    assert (over.provider, over.tags, over.input_tokens) == ("q", ["t"], 0)
    assert over == msgspec.structs.replace(record, provider="q", tags=["t"], input_tokens=0)
    assert record.provider != "q", "the given one stays as it was"
    assert coerce.overlaid(7, UsageRecord(provider="q")) == 7, "for the validator"


def test_a_key_is_made_where_none_is() -> None:
    request = SubmitUsageRequest(usage=UsageRecord(provider="p"))
    filled, key = SUBMIT(request, "", lambda: "made")
    assert (filled.usage.idempotency_key, filled.usage.provider, key) == ("made", "p", "made")
    assert request == SubmitUsageRequest(usage=UsageRecord(provider="p"))


def test_the_requests_own_key_stays_unless_another_is_given() -> None:
    request = SubmitUsageRequest(usage=UsageRecord(idempotency_key="own"))
    assert SUBMIT(request, "", lambda: "made") == (request, "own")
    assert SUBMIT(request, "", lambda: "made")[0] is request
    filled, key = SUBMIT(request, "given", lambda: "made")
    assert (filled.usage.idempotency_key, key) == ("given", "given")
    assert (
        fill_idempotency_key("idempotency_key")(CreatePriceRequest(), "given", lambda: "made")[
            0
        ].idempotency_key
        == "given"
    )


def test_elements_get_the_key_and_their_place() -> None:
    own = UsageRecord(idempotency_key="own")
    request = BatchSubmitUsageRequest(records=[UsageRecord(), own, UsageRecord()])
    filled, key = BATCH(request, "", lambda: "made")
    assert [record.idempotency_key for record in filled.records] == ["made:0", "own", "made:2"]
    assert key == "made"
    assert filled.records[1] is own
    assert [record.idempotency_key for record in request.records] == ["", "own", ""]
    whole = BatchSubmitUsageRequest(records=[own])
    assert BATCH(whole, "given", lambda: "made") == (whole, "given")
    assert BATCH(whole, "given", lambda: "made")[0] is whole


@pytest.mark.parametrize("wrong", [None, 5, "x", {"usage": 1}])
def test_a_request_of_the_wrong_type_is_left_to_the_validator(wrong: Any) -> None:
    request = SubmitUsageRequest(usage=wrong)
    assert SUBMIT(request, "", lambda: "made") == (request, "made")
    batch = BatchSubmitUsageRequest(records=[wrong])
    assert BATCH(batch, "k", lambda: "made") == (batch, "k")
