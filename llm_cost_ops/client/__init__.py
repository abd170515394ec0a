"""The clients: configuration -> transport -> interceptors -> channel -> resources."""

from __future__ import annotations

from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient

__all__ = ["AsyncCostOpsClient", "CostOpsClient"]
