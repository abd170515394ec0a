"""Corrections of any content: refused by name, or a revision whose receipt holds and whose sums follow."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_cost_ops import CostOpsClient, UsageRecord, ValidationError

CALL: dict[str, Any] = {
    "organization_id": "acme",
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 500,
    "cached_tokens": 10,
    "timestamp": "2026-11-20T15:00:00Z",
    "user_id": "u",
    "tags": ["x"],
    "labels": {"team": "red"},
}
NAMES = [name for name in UsageRecord.__struct_fields__ if name != "unknown_"]

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["0.5", "chat", "unknown", "batch", "gpt-4o-mini", "2026-01-01T00:00:00Z"]),
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
likely = st.fixed_dictionaries(
    {},
    optional={
        "input_tokens": st.integers(0, 3000),
        "output_tokens": st.one_of(st.none(), st.integers(0, 900)),
        "cached_tokens": st.integers(0, 1500),
        "reasoning_tokens": st.integers(0, 600),
        "model_id": st.sampled_from(["gpt-4o", "gpt-4o-mini", "nobody-knows-it"]),
        "user_id": st.sampled_from(["u", "v", None]),
        "tags": st.sampled_from([["x", "y"], [], None]),
        "labels": st.sampled_from([{"team": "blue"}, {}, None]),
        "meters": st.sampled_from([{"web_searches": 2}, {"unheard_of": 1}, None]),
        "request_count": st.sampled_from([3, None]),
        "quality": st.sampled_from(["unknown", "estimated", None]),
        "reported_cost": st.sampled_from(["0.25", 1, None]),
    },
)
changes = st.one_of(
    st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=8)), anything, max_size=4), likely
)


@settings(max_examples=150, deadline=None)
@given(st.lists(changes, min_size=1, max_size=4))
def test_a_correction_is_refused_or_holds(several: list[dict[str, Any]]) -> None:
    with CostOpsClient(base_url="sqlite://") as client:
        other = client.usage.submit(**CALL)
        sent = client.usage.submit(**CALL)
        place = {"organization_id": "acme"}
        number = 1
        for each in several:
            before = client.usage.revisions(sent.usage_id, **place).revisions[-1]
            try:
                revision = client.usage.correct(sent.usage_id, reason="r", changes=each, **place)
            except ValidationError:
                after = client.usage.revisions(sent.usage_id, **place).revisions[-1]
                assert after == before
                continue
            number = revision.revision
            assert number in (before.revision, before.revision + 1)
            record = revision.usage
            verified = client.costs.verify(sent.usage_id, **place)
            assert verified.matches, verified.reason
            assert verified.recorded.total_cost == record.estimated_cost
            summary = client.costs.get(**place)
            assert summary.total_requests == 1 + (record.request_count or 1)
            assert summary.total_cost == (other.estimated_cost or 0) + (record.estimated_cost or Decimal(0))
            for group_by in ("user", "tag", "label:team", "model", "status", "meter"):
                found = client.costs.get(group_by=group_by, **place)
                if group_by != "tag":
                    assert sum(group.cost for group in found.breakdown) == summary.total_cost, group_by
            listed = client.usage.get_history(**place).data
            assert {item.id: item for item in listed}[sent.usage_id] == record
        assert len(client.usage.revisions(sent.usage_id, **place).revisions) == number
        again = client.usage.void(sent.usage_id, reason="r", **place)
        assert again.revision == number + 1
        assert client.costs.get(**place).total_cost == other.estimated_cost
