"""The error of this room, which is one of the package's."""

from __future__ import annotations

from llm_cost_ops.exceptions import PayloadError

__all__ = ["PayloadError"]
