"""The messages and enums that users hold: the public face of the generated ones."""

from __future__ import annotations

from llm_cost_ops._gen import public
from llm_cost_ops._gen.public import *  # noqa: F403

__all__ = []
__all__ += public.__all__
