"""Values at the edges of what fields hold: the same answers over every transport, in both colours."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from llm_cost_ops import UsageRecord, ValidationError
from llm_cost_ops.types import SubmitStatus


class Text(str):
    """As numpy.str_."""

    __slots__ = ()


class Count(int):
    """As a member of an enum of one's own."""


class Word(str, enum.Enum):  # noqa: UP042 - StrEnum writes itself as its value
    """Whose str() is its name, as its hash is that of the name."""

    KEY = "key"
    GOOGLE = "google"
    MODEL = "gemini-2.5-pro"
    PROJECT = "project"
    USER = "user"
    TAG = "tag"


class Number(int, enum.Enum):
    SEVEN = 7


class Moment(datetime):
    """As pandas.Timestamp."""


class Unanswering:
    """As an array or pandas.NA: it does not say whether it is true."""

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")


NO_UTC = datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-5)))
"""A moment that has no form in UTC."""


def record(organization: str, **fields: Any) -> UsageRecord:
    call: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000}
    return UsageRecord(organization_id=organization, **{**call, **fields})


async def refusal(call: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        await call
    return [tuple(violation) for violation in caught.value.violations]


async def test_a_key_is_kept_with_the_spaces_around_it(client: Any, organization: str) -> None:
    for key in (" k", "k ", "k", " "):
        sent = record(organization, idempotency_key=key)
        assert not (await client.usage.submit(sent)).duplicate
        assert (await client.usage.submit(sent)).duplicate
    first = await client.usage.submit_batch([record(organization)] * 2, idempotency_key=" b")
    other = await client.usage.submit_batch([record(organization)] * 2, idempotency_key="b")
    again = await client.usage.submit_batch([record(organization)] * 2, idempotency_key=" b")
    assert (first.created, other.created, again.duplicates) == (2, 2, 2)
    listed = await client.usage.list(organization_id=organization, sort="ingested_at", order="asc")
    keys = [found.idempotency_key for found in listed.data]
    assert keys == [" k", "k ", "k", " ", " b:0", " b:1", "b:0", "b:1"]


async def test_keys_of_a_batch_follow_places_whatever_is_refused(client: Any, organization: str) -> None:
    records = [record(organization, latency_ms=n) for n in range(3)]
    bad = [records[0], record(organization, input_tokens=-1), records[2]]
    done = await client.usage.submit_batch(bad, idempotency_key="b")
    assert (done.created, done.invalid) == (2, 1)
    again = await client.usage.submit_batch(records, idempotency_key="b")
    assert (again.created, again.duplicates) == (1, 2)
    listed = await client.usage.list(organization_id=organization)
    assert {found.idempotency_key for found in listed.data} == {"b:0", "b:1", "b:2"}


async def test_spaces_around_a_header_are_no_part_of_it(client: Any, organization: str) -> None:
    listed = await client.usage.list(organization_id=organization, headers={"x-team": " red "})
    assert listed.data == []


async def test_a_moment_without_a_form_in_utc_is_refused_by_name(client: Any, organization: str) -> None:
    rule = "must not be after the year 9999 in UTC"
    bad = record(organization, timestamp=NO_UTC)
    assert await refusal(client.usage.submit(bad)) == [("timestamp", rule)]
    assert await refusal(client.costs.estimate(bad)) == [("timestamp", rule)]
    batch = await client.usage.submit_batch([bad, record(organization)])
    assert (batch.created, batch.invalid) == (1, 1)
    [violation] = batch.results[0].error.violations
    assert (violation.field, violation.description) == ("records[0].timestamp", rule)
    stream = await client.usage.stream([bad, record(organization)])
    assert (stream.created, stream.invalid) == (1, 1)


async def test_a_time_ahead_is_named_beside_other_faults(client: Any, organization: str) -> None:
    bad = record(organization, total_tokens=7, timestamp=datetime.now(UTC) + timedelta(days=1))
    faults = ["timestamp", "total_tokens"]
    assert [field for field, _ in await refusal(client.usage.submit(bad))] == faults
    batch = await client.usage.submit_batch([record(organization), bad])
    named = [violation.field for violation in batch.results[1].error.violations]
    assert named == [f"records[1].{field}" for field in faults]


async def test_the_problems_of_a_stream_are_in_its_order(client: Any, organization: str) -> None:
    kept = record(organization, idempotency_key="k")
    conflict = record(organization, idempotency_key="k", input_tokens=7)
    bad = record(organization, input_tokens=-1)
    stream = await client.usage.stream([kept, bad, conflict, bad, conflict])
    assert [(problem.index, problem.status) for problem in stream.problems] == [
        (1, SubmitStatus.INVALID),
        (2, SubmitStatus.CONFLICT),
        (3, SubmitStatus.INVALID),
        (4, SubmitStatus.CONFLICT),
    ]


async def test_a_filter_that_no_url_can_hold_is_refused_and_not_sent_again(
    client: Any, way: tuple[str, str], organization: str
) -> None:
    listing = {"organization_id": organization, "user_id": [f"{number:040}" for number in range(2000)]}
    if way[0] != "http":
        assert (await client.usage.list(**listing)).data == []
        return
    [(field, rule)] = await refusal(client.usage.list(**listing))
    assert field == "query"
    assert "URL too long" in rule


async def test_a_filter_has_as_many_labels_as_a_record(client: Any, organization: str) -> None:
    labels = {f"key-{number}": "x" for number in range(65)}
    rule = "must hold at most 64 labels, which is what a record has"
    asked = {"organization_id": organization, "label": labels}
    for call in (client.usage.list, client.costs.get, client.costs.reprice):
        assert await refusal(call(**asked)) == [("label", rule)]
    labels.pop("key-0")
    await client.usage.submit(record(organization, labels=labels))
    assert len((await client.usage.list(**asked)).data) == 1


async def test_values_of_derived_classes_are_what_they_hold(client: Any, organization: str) -> None:
    moment = Moment(2026, 5, 1, 14, 30, 15, 250, tzinfo=timezone(timedelta(hours=2)))
    sent = record(
        Text(organization),
        input_tokens=Count(7),
        timestamp=moment,
        user_id=Text("u"),
        tags=[Text("t")],
        labels={Text("k"): Text("v")},
        meters={Text("searches"): Count(1)},
        idempotency_key=Text("key"),
    )
    await client.usage.submit(sent)
    assert (await client.usage.submit_batch([sent])).duplicates == 1
    assert (await client.usage.stream([sent])).duplicates == 1
    await client.usage.submit(record(organization, user_id=Text("u"), timestamp=Moment(2026, 5, 1, 12)))
    asked = {"organization_id": Text(organization), "user_id": [Text("u")], "page_size": 1}
    first = await client.usage.list(**asked, sort="timestamp", order="desc")
    [found] = first.data
    cursor = Text(first.pagination.next_cursor)
    assert len((await client.usage.list(**asked, sort="timestamp", order="desc", cursor=cursor)).data) == 1
    assert found.timestamp == moment
    assert (found.input_tokens, found.tags, found.labels) == (7, ["t"], {"k": "v"})
    assert sent.to_dict()["timestamp"] == "2026-05-01T12:30:15.000250Z"
    await client.retention.set(organization_id=Text(organization), days=Count(9999))
    await client.pricing.create(
        provider=Text(f"p-{organization}"), model_id=Text("m"), input_price_per_million="1"
    )
    assert (await client.privacy.erase(organization_id=organization, user_id=Text("u"))).records == 2


async def test_enums_of_a_caller_are_what_they_hold(client: Any, organization: str) -> None:
    tenant = enum.Enum("Tenant", {"OURS": organization}, type=str).OURS
    fields = {
        "organization_id": tenant,
        "provider": Word.GOOGLE,
        "model_id": Word.MODEL,
        "project_id": Word.PROJECT,
        "user_id": Word.USER,
        "tags": [Word.TAG],
        "labels": {Word.TAG: Word.USER},
        "input_tokens": Number.SEVEN,
        "output_tokens": Number.SEVEN,
        "cached_tokens": Number.SEVEN,
        "request_count": Number.SEVEN,
    }
    plain: dict[str, Any] = {
        **{name: getattr(value, "value", value) for name, value in fields.items()},
        "tags": ["tag"],
        "labels": {"tag": "user"},
    }
    odd, usual = UsageRecord(**fields), UsageRecord(**plain)
    assert not (await client.usage.submit(odd, idempotency_key=Word.KEY)).duplicate
    assert (await client.usage.submit(usual, idempotency_key="key")).duplicate
    for name, send in (("batch", client.usage.submit_batch), ("stream", client.usage.stream)):
        own = enum.Enum("Own", {"KEY": f"key of a {name}"}, type=str).KEY
        bad = UsageRecord(**{**plain, "input_tokens": -1})
        # Many: a database may take them another way.
        records = [odd] * 150
        sent = await send([*records, bad], idempotency_key=own)
        assert (sent.created, sent.duplicates, sent.invalid) == (150, 0, 1)
        again = await send([usual] * 150, idempotency_key=own.value)
        assert (again.created, again.duplicates) == (0, 150)
    for group in ("provider", "model", "project", "user"):
        [found] = (await client.costs.get(organization_id=tenant, group_by=group)).breakdown
        assert found.value == {"model": "gemini-2.5-pro", "provider": "google"}.get(group, group)
        assert (found.requests, found.input_tokens) == (301 * 7, 301 * 7)
    [first] = (await client.usage.list(organization_id=tenant.value, page_size=1)).data
    assert first == (await client.usage.list(organization_id=tenant, user_id=Word.USER, page_size=1)).data[0]


async def test_a_value_that_can_not_be_compared_harms_its_own_record(client: Any, organization: str) -> None:
    bad = {
        "model_id": Unanswering(),
        "labels": Unanswering(),
        "tags": Unanswering(),
        "meters": Unanswering(),
        "cached_tokens": Decimal("NaN"),
        "reasoning_tokens": Decimal("sNaN"),
        "total_tokens": Unanswering(),
    }
    records = [record(organization, **{field: value}) for field, value in bad.items()]
    batch = await client.usage.submit_batch([*records, record(organization)])
    named = [result.error.violations[0].field for result in batch.results[:-1]]
    assert named == [f"records[{place}].{field}" for place, field in enumerate(bad)]
    assert (batch.created, batch.invalid) == (1, len(bad))
    for field, value in bad.items():
        [(name, _)] = await refusal(client.usage.submit(record(organization, **{field: value})))
        assert name == field
