"""The ledger in PostgreSQL: the suite of every ledger, the model, and what is its own."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from llm_cost_ops.ledger import open_ledger
from tests.ledger_suite import LedgerSuite
from tests.unit.ledger.making import Sync
from tests.unit.ledger.test_revisions import RepricedBesideModel


class TestPostgres(LedgerSuite):
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url


def test_the_ledger_beside_a_model(postgres: Any) -> None:
    class Postgres(RepricedBesideModel):
        @initialize(every=st.sampled_from([1, 2, 7, 500]))
        def open(self, every: int) -> None:
            self.folding = patch("llm_cost_ops.ledger.postgres.ledger.FOLD_EVERY", every)
            self.folding.start()
            self.url = postgres.new_database()
            self.store = Sync(ledger=open_ledger(self.url))

        def teardown(self) -> None:
            self.store.aclose()
            self.folding.stop()
            postgres.drop(self.url)

    run_state_machine_as_test(
        Postgres,
        settings=settings(
            max_examples=15,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
