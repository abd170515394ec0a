"""The suite of every ledger over SQLite, and over a ledger in dicts that only these tests register."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings

from llm_cost_ops import ledger as registry
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.ledger import open_ledger
from tests.dict_ledger import DictLedger
from tests.ledger_suite import LedgerSuite
from tests.life_suite import LifeSuite
from tests.unit.ledger.making import Sync
from tests.unit.ledger.test_revisions import RepricedBesideModel

REGISTERED = {**registry._BACKENDS, "dict": "tests.dict_ledger"}


class TestSqliteFile(LedgerSuite, LifeSuite):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/costs.db"


class TestSqliteMemory(LedgerSuite, LifeSuite):
    @pytest.fixture
    def url(self) -> str:
        return "sqlite://"


class TestDict(LedgerSuite, LifeSuite):
    @pytest.fixture
    def url(self) -> Iterator[str]:
        with patch.object(registry, "_BACKENDS", REGISTERED):
            yield "dict://"


class DictBesideModel(RepricedBesideModel):
    def make(self) -> Sync:
        return Sync(ledger=DictLedger())


DictBesideModel.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestDictBesideModel = DictBesideModel.TestCase


def test_only_what_is_registered_is_opened() -> None:
    with pytest.raises(ConfigurationError, match="must be one of postgres://, postgresql://, sqlite://"):
        open_ledger("dict://")
