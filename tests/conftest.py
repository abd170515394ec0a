"""Settings of the whole suite."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from hypothesis import settings

from tests.waiting import MAX_WAIT

# httpx gives an answer five seconds, unless a test says otherwise: a slow machine needs more.
for _part in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, _part, MAX_WAIT)

# Tests start hundreds of interpreters: each of them would compile the package, three quarters of its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

__all__ = [
    "no_default_client_from_another_test",
    "no_settings_from_the_environment",
    "postgres",
    "postgres_15",
    "postgres_url",
    "pytest_collection_finish",
    "pytest_sessionfinish",
]

# A shared machine has slow moments; a failure prints what reproduces it.
settings.register_profile("llm-cost-ops", deadline=None, print_blob=True)
settings.load_profile("llm-cost-ops")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives as long as the run: 14,000 tests, and all modules."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep how the run ended for .ci/run: make has one status for every failure."""
    cache = getattr(session.config, "cache", None)  # there is none with -p no:cacheprovider
    if cache is not None and not hasattr(session.config, "workerinput"):
        cache.set("status", int(exitstatus))


@pytest.fixture(autouse=True)
def no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the LLM_COST_OPS_* variables of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("LLM_COST_OPS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_default_client_from_another_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the client of the process that a test made: the next test has another environment."""
    yield
    observer = sys.modules.get("llm_cost_ops.client.observer")
    if observer is not None and observer._default is not None:
        observer._default.close()
        observer._default = None


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server for the whole run, in which nothing has to survive a crash."""
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    from tests.postgres_server import FAST, PostgresServer, why_there_is_none

    if why_there_is_none():
        pytest.skip(why_there_is_none())
    with PostgresServer(*FAST) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_15() -> Iterator[Any]:
    """As `postgres`, of the oldest version that a ledger works with."""
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    from tests.postgres_server import FAST, PostgresServer, why_there_is_none

    if why_there_is_none(15):
        pytest.skip(why_there_is_none(15))
    with PostgresServer(*FAST, version=15) as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Any) -> Iterator[str]:
    """The URL of a database with the tables of a ledger, and nothing in them."""
    url = postgres.new_database()
    yield url
    postgres.drop(url)
