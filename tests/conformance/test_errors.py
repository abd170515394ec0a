"""Bad input: a clear error that names field and rule, before anything is written."""

from __future__ import annotations

import inspect
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from llm_cost_ops import NotFoundError, ValidationError, exceptions
from llm_cost_ops.types import Operation

GOOD: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 10, "output_tokens": 5}


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"input_tokens": -5}, {"input_tokens"}),
        ({"input_tokens": 2**63}, {"input_tokens"}),
        ({"input_tokens": "many"}, {"input_tokens"}),
        ({"input_tokens": 1.5}, {"input_tokens"}),
        ({"input_tokens": True}, {"input_tokens"}),
        ({"total_tokens": 16}, {"total_tokens"}),
        ({"cached_tokens": 11}, {"cached_tokens"}),
        ({"cached_tokens": 6, "cache_write_tokens": 6}, {"cache_write_tokens"}),
        ({"reasoning_tokens": 6}, {"reasoning_tokens"}),
        ({"cache_write_tokens": 1, "cache_write_extended_tokens": 2}, {"cache_write_extended_tokens"}),
        ({"organization_id": ""}, {"organization_id"}),
        ({"organization_id": "x" * 101}, {"organization_id"}),
        ({"model_id": "x" * 256}, {"model_id"}),
        ({"provider": "a\x00b"}, {"provider"}),
        ({"provider": "a\nb"}, {"provider"}),
        ({"project_id": "\ud800"}, {"project_id"}),
        ({"trace_id": "xyz"}, {"trace_id"}),
        ({"reported_cost": "1e999999999"}, {"reported_cost"}),
        ({"reported_cost": "NaN"}, {"reported_cost"}),
        ({"reported_cost": Decimal("Infinity")}, {"reported_cost"}),
        ({"reported_cost": Decimal("1e1000000")}, {"reported_cost"}),
        ({"reported_cost": 0.1}, {"reported_cost"}),
        ({"reported_cost": "1_000"}, {"reported_cost"}),
        ({"reported_cost": "١"}, {"reported_cost"}),
        ({"timestamp": "yesterday"}, {"timestamp"}),
        ({"timestamp": datetime.now(UTC) + timedelta(hours=1)}, {"timestamp"}),
        ({"metadata": {"x": "y" * 17000}}, {"metadata"}),
        ({"metadata": {"x": object()}}, {"metadata"}),
        ({"metadata": {1: "x"}}, {"metadata"}),
        ({"metadata": {"x": float("nan")}}, {"metadata"}),
        ({"metadata": ["a"]}, {"metadata"}),
        ({"tags": ["x" * 300]}, {"tags"}),
        ({"labels": {"a": 1}}, {"labels"}),
        ({"meters": {"pages": -1}}, {"meters"}),
        ({"request_count": 0}, {"request_count"}),
        (
            {"input_tokens": -5, "reasoning_tokens": 6, "organization_id": ""},
            {"input_tokens", "reasoning_tokens", "organization_id"},
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
async def test_bad_records(client: Any, organization: str, change: dict[str, Any], fields: set[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        await client.usage.submit(**{"organization_id": organization, **GOOD, **change})
    named = {violation.field for violation in caught.value.violations}
    for field in fields:
        assert any(name.startswith(field) for name in named), named
    assert all(violation.description for violation in caught.value.violations)
    assert len(str(caught.value)) < 2000
    assert (await client.costs.get(organization_id=organization)).total_requests == 0


async def to_its_end(call: Any) -> None:
    """Make a call; read all that it gives, where that is not one answer."""
    answer = await call if inspect.isawaitable(call) else call
    if hasattr(answer, "__aiter__"):
        async for _ in answer:
            pass
    elif hasattr(answer, "__iter__"):
        list(answer)


@pytest.mark.parametrize(
    ("resource", "method", "change", "rule"),
    [
        ("usage", "submit", {"operation": "chta"}, "must be one of chat, text_completion, "),
        ("usage", "submit", {"operation": "chta"}, ", not 'chta': did you mean 'chat'?"),
        ("usage", "submit", {"operation": "99"}, "not '99'"),
        ("usage", "submit", {"operation": 1}, "not 1"),
        (
            "usage",
            "submit",
            {"outcome": "fialed"},
            "must be one of succeeded, failed, cancelled, not 'fialed'",
        ),
        ("usage", "submit", {"quality": "x"}, "must be one of provider, estimated, unknown, not 'x'"),
        ("usage", "list", {"operation": "chta"}, "did you mean 'chat'?"),
        ("usage", "get_history", {"operation": ["chat", "chta"]}, "did you mean 'chat'?"),
        ("usage", "export", {"operation": "chta"}, "did you mean 'chat'?"),
        ("costs", "get", {"status": "pricd"}, "not 'pricd': did you mean 'priced'?"),
        ("costs", "estimate", {"operation": "chta"}, "did you mean 'chat'?"),
        (
            "analytics",
            "get",
            {"interval": "dya"},
            "day, week, month, not 'dya': did you mean 'day'?",
        ),
        ("pricing", "create", {"tier_mode": "graduatd"}, "did you mean 'graduated'?"),
        ("pricing", "list", {"origin": "catalogue"}, "did you mean 'catalog'?"),
    ],
)
async def test_a_mistyped_value_is_told_with_the_known_ones(
    client: Any, organization: str, resource: str, method: str, change: dict[str, Any], rule: str
) -> None:
    given: dict[str, Any] = {
        "submit": {"organization_id": organization, **GOOD},
        "estimate": GOOD,
        "create": {"provider": "p", "model_id": "m", "input_price_per_1k": 1, "effective_date": "2026-01-01"},
    }.get(method, {})
    if resource == "analytics":
        given = {"start_date": "2026-01-01", "end_date": "2026-01-02"}
    with pytest.raises(ValidationError) as caught:
        await to_its_end(getattr(getattr(client, resource), method)(**given, **change))
    [field] = change
    [violation] = caught.value.violations
    assert violation.field == field
    assert rule in violation.description


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("2026-01-01", datetime(2026, 1, 1, tzinfo=UTC)),
        (date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T10:30", datetime(2026, 1, 1, 10, 30, tzinfo=UTC)),
        ("2026-01-01T10:30:00.5+01:00", datetime(2026, 1, 1, 9, 30, 0, 500_000, UTC)),
    ],
)
async def test_a_timestamp_may_be_text_or_a_date(
    client: Any, organization: str, given: Any, taken: datetime
) -> None:
    await client.usage.submit(organization_id=organization, **GOOD, timestamp=given)
    [record] = (await client.usage.get_history(organization_id=organization)).data
    assert record.timestamp == taken


async def test_a_timestamp_that_is_none_is_told_how_to_write(client: Any, organization: str) -> None:
    with pytest.raises(ValidationError, match="text such as 2026-01-31T12:00:00Z, not 'last week'"):
        await client.usage.submit(organization_id=organization, **GOOD, timestamp="last week")


async def test_a_value_that_a_newer_peer_made_may_be_written_again(client: Any, organization: str) -> None:
    for operation in (Operation("99"), Operation("chat")):
        await client.usage.submit(organization_id=organization, **GOOD, operation=operation)
    [record] = (await client.usage.get_history(organization_id=organization, operation="99")).data
    assert record.operation == "99"
    await client.usage.submit(msgspec.structs.replace(record, idempotency_key="again"))
    assert (await client.costs.get(organization_id=organization, operation="99")).total_requests == 2


def facts_of(error: ValidationError) -> dict[str, Any]:
    facts = {name: value for name, value in vars(error).items() if name not in ("grpc_code", "violations")}
    return {"type": type(error), **facts}


@pytest.mark.parametrize(
    ("resource", "method", "given", "message"),
    [
        ("usage", "submit", {"input_tokens": -5}, "input_tokens must be 0 or more, not -5"),
        (
            "usage",
            "submit",
            {"total_tokens": 1},
            "total_tokens must be input_tokens + output_tokens (15); got 1",
        ),
        ("usage", "submit", {"timeout": -1}, "timeout must be a number of seconds, 0 or more, not -1"),
        ("usage", "submit_batch", {"records": []}, "records must hold at least one record"),
        ("usage", "get_history", {"page_size": "x"}, "page_size must be an integer, not 'x'"),
        ("costs", "get", {"currency": 5}, "currency must be a string, not 5"),
        ("analytics", "get", {"start_date": ""}, "start_date is required"),
        ("pricing", "get", {"id": ""}, "id is required"),
        ("usage", "export", {"tag": [5]}, "tag[0] must be a string, not 5"),
    ],
)
async def test_what_is_refused_here_is_told_alike_everywhere(
    client: Any, organization: str, resource: str, method: str, given: dict[str, Any], message: str
) -> None:
    if method == "submit":
        given = {"organization_id": organization, **GOOD, **given}
    with pytest.raises(ValidationError) as caught:
        await to_its_end(getattr(getattr(client, resource), method)(**given))
    error = caught.value
    assert facts_of(error) == {
        "type": ValidationError,
        "message": message,
        "code": "INVALID_ARGUMENT",
        "status_code": None,
        "request_id": "",
        "response": None,
        "attempts": 0,
        "maybe_applied": False,
        "retryable": False,
        "retry_after": None,
        "waited": 0.0,
        "server": "",
    }
    assert [" ".join(violation) for violation in error.violations] == [message]


async def test_what_the_service_refuses_is_told_alike_everywhere(client: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        await client.costs.get(group_by="nothing")
    error = caught.value
    assert (error.code, error.status_code, error.attempts) == ("INVALID_ARGUMENT", 400, 1)
    assert error.request_id
    assert str(error).startswith("group_by ")


async def test_a_word_that_this_version_does_not_know_was_not_sent(client: Any) -> None:
    with pytest.raises(ValidationError, match=r"operation must be one of chat, .*, not 'new'") as caught:
        await client.usage.submit(organization_id="a", **GOOD, operation=Operation("new"))
    assert caught.value.attempts == 0


async def test_no_such_price(client: Any) -> None:
    with pytest.raises(NotFoundError) as caught:
        await client.pricing.get("no/such/../price?x=1")
    assert caught.value.status_code == 404
    assert caught.value.code == "NOT_FOUND"


async def test_no_time_is_no_time(client: Any, organization: str) -> None:
    with pytest.raises(exceptions.TimeoutError):
        await client.usage.submit(organization_id=organization, timeout=0, **GOOD)
    assert (await client.costs.get(organization_id=organization)).total_requests == 0


@pytest.mark.parametrize("timeout", [-1, "soon", float("nan"), True])
async def test_bad_timeouts(client: Any, organization: str, timeout: Any) -> None:
    with pytest.raises(ValidationError, match="timeout"):
        await client.usage.submit(organization_id=organization, timeout=timeout, **GOOD)


async def test_headers_can_not_split(client: Any, organization: str) -> None:
    with pytest.raises(ValidationError, match="headers"):
        await client.usage.submit(organization_id=organization, headers={"x": "a\r\nb: c"}, **GOOD)
