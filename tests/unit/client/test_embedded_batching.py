"""Submits to an embedded ledger leave together where a commit waits for a disk or a network."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import (
    AsyncCostOpsClient,
    BatchingConfig,
    ClientConfig,
    CostOpsClient,
    CostOpsError,
    ValidationError,
)
from llm_cost_ops.client.batching import Batching
from llm_cost_ops.rpc.raw import RawResponse
from tests.unit.client.test_batching import CALL, COLOURS, waiting_in
from tests.waiting import MAX_WAIT, until, until_async


@pytest.mark.parametrize("client", [CostOpsClient, AsyncCostOpsClient])
@pytest.mark.parametrize(
    ("url", "durability", "gathers"),
    [
        ("sqlite:///{}/a.db", "disk", True),
        ("sqlite:///{}/a.db?durability=disk", "process", True),
        ("postgresql://nobody@localhost/none", "disk", True),
        ("sqlite:///{}/a.db", "process", False),
        ("sqlite:///{}/a.db?durability=process&reported_providers=a", "disk", False),
        ("sqlite:///:memory:", "disk", False),
        ("sqlite://", "disk", False),
    ],
)
def test_where_a_commit_waits(client: Any, url: str, durability: Any, gathers: bool, tmp_path: Path) -> None:
    made = client(config=ClientConfig(base_url=url.format(tmp_path), durability=durability))
    assert any(isinstance(each, Batching) for each in made._channel.core.interceptors) is gathers


FIRST = {"idempotency_key": "first", "input_tokens": 7}
SENT: list[dict[str, Any]] = [
    *[{"input_tokens": number, "user_id": f"user {number}"} for number in range(8)],
    FIRST,
    {**FIRST, "input_tokens": 8},
    {"organization_id": 5},
    {"organization_id": ""},
    {"model_id": None},
    {"input_tokens": -1},
    {"input_tokens": "many"},
    {"labels": {"a": 1}},
    {"labels": {"a": "b"}, "tags": ["c", "d"], "metadata": {"e": [1, 2]}},
    {"metadata": {"a": object()}},
    {"tags": 7},
    {"timestamp": datetime(2100, 1, 1, tzinfo=UTC)},
    {"timestamp": datetime(2025, 6, 1)},
    {"session_id": "s" * 5000},
]


def arguments(sent: dict[str, Any]) -> dict[str, Any]:
    return {**CALL, "input_tokens": 1, "output_tokens": 1, **sent}


def seen(outcome: Any) -> Any:
    """What a caller can tell of it, but for ids and times."""
    if isinstance(outcome, CostOpsError):
        message, *_ = outcome.message.partition(", and the clock of the service has")
        return type(outcome), outcome.status_code, outcome.code, message, outcome.attempts
    if isinstance(outcome, BaseException):
        return type(outcome), str(outcome)
    return outcome.estimated_cost, outcome.cost_status, outcome.duplicate


@pytest.mark.parametrize("colour", COLOURS)
def test_each_gets_what_it_would_alone(colour: str, tmp_path: Path) -> None:
    """While another process holds the file, the first submits wait for it, and all others for them."""
    run = in_threads if colour == "sync" else in_tasks
    answers = run(tmp_path / "together.db")
    assert len({answer.batch for answer in answers if isinstance(answer, RawResponse)} - {""}) == 1
    together = [answer.parsed if isinstance(answer, RawResponse) else answer for answer in answers]
    config = ClientConfig(base_url=f"sqlite:///{tmp_path}/alone.db", batching=BatchingConfig(enabled=False))
    with CostOpsClient(config=config) as client:
        client.usage.submit(**arguments(FIRST))
        alone = [outcome_of(partial(client.usage.submit, **arguments(sent))) for sent in SENT]
    assert [seen(outcome) for outcome in together] == [seen(outcome) for outcome in alone]
    kinds = {type(outcome).__name__ for outcome in together}
    assert kinds >= {"UsageReceipt", "ConflictError", "ValidationError"}


@pytest.mark.parametrize("wrong", ["text", 5, {"model_id": "m"}])
def test_what_is_no_record_is_refused_as_elsewhere(wrong: Any, tmp_path: Path) -> None:
    with (
        CostOpsClient(base_url=f"sqlite:///{tmp_path}/a.db") as client,
        pytest.raises(ValidationError, match="usage must be a UsageRecord"),
    ):
        client.usage.submit(wrong)


def outcome_of(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - what the call comes to
        return error


def all_came(client: Any, calls: list[Any], let_through: int) -> bool:
    return waiting_in(client) + sum(call.done() for call in calls) == len(SENT) - let_through


def in_threads(path: Path) -> list[Any]:
    with CostOpsClient(base_url=f"sqlite:///{path}") as client, ThreadPoolExecutor(len(SENT)) as threads:
        client.usage.submit(**arguments(FIRST))
        submit = client.with_raw_response.usage.submit
        with held_by_another(path):
            calls = [threads.submit(outcome_of, partial(submit, **arguments(sent))) for sent in SENT]
            until(lambda: all_came(client, calls, 1))
        return [call.result(MAX_WAIT) for call in calls]


def in_tasks(path: Path) -> list[Any]:
    async def run() -> list[Any]:
        async with AsyncCostOpsClient(base_url=f"sqlite:///{path}") as client:
            await client.usage.submit(**arguments(FIRST))
            submit = client.with_raw_response.usage.submit
            with held_by_another(path):
                calls = [asyncio.ensure_future(submit(**arguments(sent))) for sent in SENT]
                await until_async(lambda: all_came(client, calls, 4))
            return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(run())


@contextmanager
def held_by_another(path: Path) -> Iterator[None]:
    """While nobody else can write to a ledger's file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
