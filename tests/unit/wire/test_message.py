"""What every message can do: say itself as JSON and as plain values."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import msgspec
import pytest

from llm_cost_ops import CostOpsClient, RateCard, UsageRecord
from llm_cost_ops._gen import codecs, messages
from llm_cost_ops.types import CostStatus, Operation, UsageReceipt
from llm_cost_ops.wire.errors import EncodeError
from llm_cost_ops.wire.unknown import Unknown

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))


def test_a_record_as_json_and_as_plain_values() -> None:
    record = UsageRecord(
        organization_id="acme",
        operation=Operation.CHAT,
        input_tokens=0,
        timestamp=AT,
        reported_cost=Decimal("0.000000000001"),
        metadata={"a": [1, None, 1.5]},
        meters={"PAGES": 2**60},
        unknown_=Unknown(json={"newer": msgspec.Raw(b'{"b":1}')}),
    )
    assert record.to_dict() == {
        "organization_id": "acme",
        "operation": "chat",
        "input_tokens": 0,
        "timestamp": "2026-01-02T01:04:05Z",
        "reported_cost": "0.000000000001",
        "metadata": {"a": [1, None, 1.5]},
        "meters": {"PAGES": 2**60},
        "newer": {"b": 1},
    }
    assert json.loads(json.dumps(record.to_dict())) == json.loads(record.to_json())
    assert codecs.USAGE_RECORD.decode_json(record.to_json().encode()) == msgspec.structs.replace(
        record, timestamp=AT.astimezone(UTC)
    )


def test_a_receipt_without_a_price_says_null() -> None:
    receipt = UsageReceipt(usage_id="u", cost_status=CostStatus.UNPRICED)
    assert receipt.to_dict()["estimated_cost"] is None
    assert receipt.to_dict()["cost_status"] == "unpriced"


def test_every_message_has_both() -> None:
    by_type = {each.type: each for each in map(vars(codecs).get, codecs.__all__) if each is not None}
    assert len(by_type) > 50
    assert all(kind.__module__ == messages.__name__ for kind in by_type)
    for kind, constant in by_type.items():
        message = kind()
        assert message.to_json().encode() == constant.encode_json(message)
        # As JSON responses of web frameworks are written, FastAPI's among them.
        assert json.loads(json.dumps(message.to_dict(), allow_nan=False)) == json.loads(message.to_json())
        assert json.loads(json.dumps(message.to_dict())) == message.to_dict()


def test_what_the_client_answers_can_be_dumped() -> None:
    with CostOpsClient(base_url="sqlite://") as client:
        sent = client.usage.submit(
            organization_id="a", provider="openai", model_id="gpt-4o", input_tokens=1000, output_tokens=5
        )
        assert json.loads(json.dumps(sent.to_dict()))["estimated_cost"] == str(sent.estimated_cost)
        assert json.loads(client.costs.get(group_by=["provider", "day"]).to_json())["total_requests"] == 1
        page = client.pricing.list(provider="openai", model_id="gpt-4o")
        assert all(isinstance(card, RateCard) and json.dumps(card.to_dict()) for card in page)


def test_what_is_no_value_of_its_field_is_an_error() -> None:
    wrong = UsageRecord(organization_id="a")
    wrong.reported_cost = Decimal("NaN")
    with pytest.raises(EncodeError):
        wrong.to_dict()
