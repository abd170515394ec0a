"""Clients on an engine in memory: real prices, real arithmetic, no file and no server.

The environment does not set them up: a spool that it names would be emptied into an engine that is gone with
the test.
"""

from __future__ import annotations

from typing import Any

from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient
from llm_cost_ops.config import ClientConfig

__all__ = ["async_memory_client", "memory_client"]


def memory_client(**options: Any) -> CostOpsClient:
    """A CostOpsClient on an engine of its own. Takes what CostOpsClient takes, but `base_url`."""
    return CostOpsClient(base_url="sqlite://", **{"config": ClientConfig(), **options})


def async_memory_client(**options: Any) -> AsyncCostOpsClient:
    """An AsyncCostOpsClient on an engine of its own. Takes what the client takes, but `base_url`."""
    return AsyncCostOpsClient(base_url="sqlite://", **{"config": ClientConfig(), **options})
