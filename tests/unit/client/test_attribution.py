"""Blocks of `attribute`, and where they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

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
