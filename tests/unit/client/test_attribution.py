"""Blocks of `attribute`, and where they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from llm_cost_ops import ConfigurationError, CostOpsClient, ValidationError
from llm_cost_ops.client.attribution import attribute, current_attributes


async def test_a_stream_that_is_dropped_in_a_block_ends_quietly_wherever_that_is() -> None:
    async def stream() -> AsyncGenerator[str]:
        with attribute(user_id="u-1"):
            yield current_attributes().user_id

    async def first() -> str:
        return await anext(messages)

    messages = stream()
    # As a web framework does, whose caller goes away: it is read in one task and closed in another.
    assert await asyncio.create_task(first()) == "u-1"
    await asyncio.create_task(messages.aclose())
    assert current_attributes().user_id == ""


def test_the_organization_of_a_client_is_that_of_records_and_of_questions_about_one() -> None:
    call = {"provider": "openai", "model_id": "gpt-4o", "output_tokens": 1000}
    with CostOpsClient(base_url="sqlite://", organization_id="acme") as client:
        sent = client.usage.submit(**call)
        assert sent.organization_id == "acme"
        assert str(client.costs.get_record(sent.usage_id).total_cost) == "0.01"
        assert client.costs.verify(sent.usage_id).matches
        client.usage.correct(sent.usage_id, reason="r", changes={"output_tokens": 2000})
        client.usage.void(sent.usage_id, reason="r")
        assert len(client.usage.revisions(sent.usage_id).revisions) == 3
        client.usage.submit(**call, organization_id="other")
        assert [group.value for group in client.costs.get(group_by="organization").breakdown] == ["other"]
    with CostOpsClient(base_url="sqlite://") as client:
        sent = client.usage.submit(**call, organization_id="acme")
        with pytest.raises(ValidationError, match="organization_id must be given"):
            client.costs.get_record(sent.usage_id)
        with client.attribute(organization_id="acme"):
            assert client.costs.get_record(sent.usage_id).usage_id == sent.usage_id


def test_a_url_in_the_place_of_the_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="give that as base_url") as refused:
        CostOpsClient("sqlite:///costs.db")
    assert refused.value.parameter == "api_key"
