"""Whatever a server acknowledges before it fails, each record of a stream is written once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_cost_ops import ClientConfig, CostOpsClient, RetryConfig, UsageRecord
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.testing import VirtualRuntime
from llm_cost_ops.types import RecordError, StreamProblem, StreamUsageResponse, SubmitStatus


class Model:
    """A server that writes batches, loses connections as a script says, and keeps a ledger of keys."""

    def __init__(self, script: list[tuple[int, int, str]]) -> None:
        self.script = script
        self.written: dict[str, int] = {}
        self.most = 0

    async def unary_unary(self, request: Any, context: CallContext) -> Any:
        raise NotImplementedError

    async def aclose(self) -> None:
        pass

    async def stream_stream(self, requests: Any, context: CallContext) -> AsyncGenerator[Any, None]:
        size, batches, fault = self.script.pop() if self.script else (7, 1 << 30, "")
        answer = StreamUsageResponse()
        batch: list[UsageRecord] = []
        taken = 0

        def write() -> StreamUsageResponse:
            told = StreamUsageResponse(
                durable=answer.durable + len(batch), created=answer.created, duplicates=answer.duplicates
            )
            for index, record in enumerate(batch, answer.durable):
                key = record.idempotency_key
                if record.input_tokens % 10 == 3:
                    error = RecordError(code="INVALID_ARGUMENT", message=str(record.input_tokens))
                    told.problems.append(StreamProblem(index=index, status=SubmitStatus.INVALID, error=error))
                elif key in self.written:
                    told.duplicates += 1
                else:
                    self.written[key] = record.input_tokens
                    told.created += 1
            batch.clear()
            return told

        async for record in _records(requests):
            taken += 1
            batch.append(record)
            if len(batch) == size:
                if batches == 0:
                    if fault == "unacknowledged":
                        write()
                    if fault != "ended":
                        raise RpcError(StatusCode.UNAVAILABLE, "gone", origin="network", maybe_applied=True)
                    return
                batches -= 1
                answer = write()
                yield answer
        self.most = max(self.most, taken)
        if batch:
            yield write()


async def _records(requests: Any) -> AsyncGenerator[UsageRecord, None]:
    async for request in requests:
        for record in request.records:
            yield record


faults = st.tuples(
    st.integers(1, 9), st.integers(0, 3), st.sampled_from(["before", "unacknowledged", "ended"])
)


@given(st.integers(0, 60), st.integers(1, 25), st.lists(faults, max_size=8))
@settings(deadline=None, max_examples=200)
def test_each_record_is_written_once(count: int, segment: int, script: list[tuple[int, int, str]]) -> None:
    model = Model(list(script))
    config = ClientConfig(retry=RetryConfig(max_retries=20, max_backoff=1.0, budget=1000.0))
    client = CostOpsClient(base_url="http://model", config=config, transport=model, runtime=VirtualRuntime())
    records = [
        UsageRecord(organization_id="o", provider="p", model_id="m", input_tokens=n) for n in range(count)
    ]
    seen = [progress.records for progress in client.usage.stream_progress(iter(records), segment=segment)]
    assert seen == sorted(seen)
    assert seen[-1:] == ([count] if count else [])
    assert sorted(model.written.values()) == [n for n in range(count) if n % 10 != 3]
    assert model.most <= segment

    model.script, model.written = list(script), {}
    receipt = client.usage.stream(records, segment=segment)
    bad = [n for n in range(count) if n % 10 == 3]
    assert [problem.index for problem in receipt.problems] == bad
    assert [problem.error.message for problem in receipt.problems] == [str(n) for n in bad]
    assert (receipt.records, receipt.created + receipt.duplicates) == (count, count - len(bad))
    assert len(model.written) == count - len(bad)
