"""Public prices: a catalog that ships with the package, and how to look into, compare and refresh it.

Importing this loads no prices; `load_catalog()` does, once, when first called.
"""

from __future__ import annotations

from llm_cost_ops.catalog.bundle import CatalogError
from llm_cost_ops.catalog.diff import PriceChange, price_diff
from llm_cost_ops.catalog.load import Catalog, CatalogModel, load_catalog, use_catalog, user_catalog_path
from llm_cost_ops.catalog.update import CatalogUpdate, update_catalog

__all__ = [
    "Catalog",
    "CatalogError",
    "CatalogModel",
    "CatalogUpdate",
    "PriceChange",
    "load_catalog",
    "price_diff",
    "update_catalog",
    "use_catalog",
    "user_catalog_path",
]
