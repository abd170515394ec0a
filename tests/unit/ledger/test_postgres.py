"""The ledger in PostgreSQL: the suite of every ledger, the model, and what is its own."""

from __future__ import annotations

import pytest

from tests.ledger_suite import LedgerSuite


class TestPostgres(LedgerSuite):
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url
