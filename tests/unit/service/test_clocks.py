"""A record that the clock of the service has not reached yet: known keys first, and none refused for good."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest

from llm_cost_ops._gen.messages import (
    BatchSubmitUsageRequest,
    StreamUsageRequest,
    SubmitUsageRequest,
    UsageRecord,
)
from llm_cost_ops._gen.methods import BATCH_SUBMIT_USAGE, STREAM_USAGE, SUBMIT_USAGE
from llm_cost_ops.client.submitting import _submitted
from llm_cost_ops.exceptions import ServerError
from llm_cost_ops.ledger import Filter, open_ledger
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service import Service
from llm_cost_ops.testing import AsyncVirtualRuntime

NOW = 1_780_000_000.0
MOMENT = datetime.fromtimestamp(NOW, UTC)


def record(**fields: Any) -> UsageRecord:
    given = {"timestamp": MOMENT, "idempotency_key": "k1", "input_tokens": 1000, **fields}
    return UsageRecord(organization_id="acme", provider="openai", model_id="gpt-4o", **given)


class Behind:
    """A service that took the record k1, and whose clock then fell back."""

    def __init__(self, seconds: float, origin: str = "server") -> None:
        self.runtime = AsyncVirtualRuntime(now=NOW)
        self.service = Service(open_ledger("sqlite://"), origin=origin)
        self.seconds = seconds

    async def __aenter__(self) -> Self:
        await self.submit(record())
        self.runtime = AsyncVirtualRuntime(now=NOW - self.seconds)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.aclose()

    def context(self, method: Any) -> CallContext:
        return CallContext(method, self.runtime, Metadata(), self.runtime.monotonic() + 30)

    def answer(self, method: Any, request: Any) -> Any:
        return self.service.handler.answers[method.path](request, self.context(method))

    async def submit(self, sent: UsageRecord) -> Any:
        request = SubmitUsageRequest(usage=sent)
        return (await self.answer(SUBMIT_USAGE, request)).data

    async def batch(self, *sent: UsageRecord) -> Any:
        request = BatchSubmitUsageRequest(records=list(sent))
        return (await self.answer(BATCH_SUBMIT_USAGE, request)).data

    async def stream(self, *sent: UsageRecord) -> Any:
        async def requests() -> Any:
            yield StreamUsageRequest(records=list(sent))

        answers = self.answer(STREAM_USAGE, requests())
        return [answer async for answer in answers][-1]

    async def count(self) -> int:
        return await self.service.ledger.sums.count(Filter(), self.context(SUBMIT_USAGE))


async def test_a_retry_that_meets_a_clock_that_is_behind_is_a_duplicate() -> None:
    async with Behind(3600) as behind:
        again = await behind.submit(record())
        assert again.duplicate
        assert again.estimated_cost is not None
        # A naive time is in UTC: the same moment.
        assert (await behind.submit(record(timestamp=MOMENT.replace(tzinfo=None)))).duplicate
        with pytest.raises(RpcError) as conflict:
            await behind.submit(record(input_tokens=1001))
        assert conflict.value.code is StatusCode.ALREADY_EXISTS


async def test_a_new_record_from_the_future_is_refused_with_both_clocks_and_may_come_again() -> None:
    async with Behind(330) as behind:
        for key in ("k2", ""):
            with pytest.raises(RpcError) as refused:
                await behind.submit(record(idempotency_key=key))
            assert refused.value.code is StatusCode.UNAVAILABLE
            assert refused.value.retry_after == 30.0
            assert f"{MOMENT:%Y-%m-%dT%H:%M:%S}Z" in refused.value.message
            assert f"{MOMENT - timedelta(seconds=330):%Y-%m-%dT%H:%M:%S}Z" in refused.value.message
            assert [violation.field for violation in refused.value.violations] == ["timestamp"]
        assert await behind.count() == 1
        behind.runtime.advance(31)
        assert not (await behind.submit(record(idempotency_key="k2"))).duplicate


@pytest.mark.parametrize("way", ["batch", "stream"])
async def test_each_record_of_many_has_its_own_answer(way: str) -> None:
    async with Behind(3600) as behind:
        sent = [
            record(),
            record(idempotency_key="k2"),
            record(input_tokens=1),
            record(idempotency_key="k3", timestamp=None),
        ]
        if way == "batch":
            answer = await behind.batch(*sent)
            assert (answer.created, answer.duplicates, answer.conflicts, answer.invalid) == (1, 1, 1, 1)
            error = answer.results[1].error
            assert error.violations[0].field == "records[1].timestamp"
        else:
            answer = await behind.stream(*sent)
            assert (answer.created, answer.duplicates, len(answer.problems)) == (1, 1, 2)
            error = answer.problems[0].error
        assert error.code == "UNAVAILABLE"
        assert await behind.count() == 2


async def test_in_one_process_there_is_one_clock() -> None:
    async with Behind(3600, origin="client") as behind:
        assert (await behind.submit(record())).duplicate
        with pytest.raises(RpcError) as refused:
            await behind.submit(record(idempotency_key="k2"))
        assert refused.value.code is StatusCode.INVALID_ARGUMENT


async def test_a_recorder_keeps_what_was_refused_for_a_clock() -> None:
    async with Behind(3600) as behind:
        receipt = await behind.batch(record(), record(idempotency_key="k2"))

        class Connection:
            def send(self, _: object) -> Any:
                return receipt

        with pytest.raises(ServerError, match="5 minutes in the future") as error:
            _submitted(Connection(), [record(), record(idempotency_key="k2")])
        assert error.value.retryable
