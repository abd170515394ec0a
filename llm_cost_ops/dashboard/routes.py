"""Which function answers which address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from llm_cost_ops.dashboard import api_keys, breakdowns, pricing, records
from llm_cost_ops.dashboard.exchange import Answer
from llm_cost_ops.dashboard.page import Page
from llm_cost_ops.dashboard.records import RECORD_PATH

__all__ = ["PAGES", "RECORD_PATH"]

PAGES: dict[tuple[str, str], Callable[[Page], Awaitable[Answer]]] = {
    ("GET", "/"): breakdowns.costs_page,
    ("GET", "/dashboard/tokens"): breakdowns.tokens_page,
    ("GET", "/dashboard/requests"): breakdowns.requests_page,
    ("GET", "/dashboard/breakdown.csv"): breakdowns.costs_csv,
    ("GET", "/dashboard/records"): records.records_page,
    ("GET", "/dashboard/records.csv"): records.records_csv,
    ("GET", RECORD_PATH): records.record_page,
    ("GET", "/dashboard/unpriced"): pricing.unpriced_page,
    ("POST", "/dashboard/reprice"): pricing.reprice,
    ("GET", "/dashboard/prices"): pricing.prices_page,
    ("GET", "/dashboard/prices/new"): pricing.new_price_page,
    ("POST", "/dashboard/prices/new"): pricing.add_price,
    ("GET", "/dashboard/keys"): api_keys.keys_page,
    ("POST", "/dashboard/keys"): api_keys.add_key,
    ("POST", "/dashboard/keys/revoke"): api_keys.revoke,
}
"""By verb and path. What follows RECORD_PATH is a record's id."""
