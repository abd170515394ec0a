"""The pytest plugin: fixtures with a client on an engine in memory. It loads nothing until one is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient

__all__ = ["async_costops", "costops"]


@pytest.fixture
def costops() -> Iterator[CostOpsClient]:
    """A CostOpsClient on an engine in memory, empty for each test."""
    from llm_cost_ops.testing.clients import memory_client

    with memory_client() as client:
        yield client


@pytest.fixture
def async_costops() -> Iterator[AsyncCostOpsClient]:
    """An AsyncCostOpsClient on an engine in memory, empty for each test.

    Works with every plugin for async tests, because it is no async fixture itself.
    """
    import asyncio

    from llm_cost_ops.testing.clients import async_memory_client

    client = async_memory_client()
    yield client
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(client.close())
    finally:
        loop.close()
