"""Callbacks for frameworks that make calls by SDKs of their own: one file each, named as the framework.

    from llm_cost_ops.callbacks.langchain import CostOpsCallbackHandler

Each of them imports its framework; this package imports none.
"""

from __future__ import annotations

__all__: list[str] = []
