"""What goes wrong with a catalog."""

from __future__ import annotations

from llm_cost_ops.exceptions import CostOpsError

__all__ = ["CatalogError"]


class CatalogError(CostOpsError):
    """A price catalog cannot be read, is not what it claims to be, or is newer than this package.

    The catalog that was in force before stays in force.
    """
