"""Test the code that uses a client: on a real engine in memory, or against a scripted server.

With pytest, the fixtures `costops` and `async_costops` are there once the package is installed:

    def test_answering(costops):
        answer("hello", costops)
        assert costops.costs.get().total_requests == 1

Runs as it is, without pytest.
"""

from __future__ import annotations

import time

from llm_cost_ops import CostOpsClient, CostOpsError
from llm_cost_ops.testing import Fault, ScriptedTransport, VirtualRuntime, memory_client
from llm_cost_ops.types import UsageReceipt


def answer(question: str, client: CostOpsClient) -> str:
    """The code under test: it answers, and records what the answer used."""
    text = question.upper()  # where a model would be called
    try:
        client.usage.submit(
            organization_id="acme",
            provider="openai",
            model_id="gpt-4o",
            input_tokens=len(question),
            output_tokens=len(text),
        )
    except CostOpsError:
        pass  # a lost record is no reason to keep the answer back
    return text


def test_it_records_what_it_used() -> None:
    with memory_client() as client:
        assert answer("hello", client) == "HELLO"
        [record] = client.usage.list()
        assert (record.input_tokens, record.output_tokens) == (5, 5)


def test_it_survives_an_outage_of_minutes() -> None:
    transport = ScriptedTransport([Fault(503, times=2, retry_after=45.0), UsageReceipt(usage_id="u-1")])
    clock = VirtualRuntime()
    started = time.monotonic()
    client = CostOpsClient(base_url="https://costs.test", timeout=300, transport=transport, runtime=clock)
    assert answer("hello", client) == "HELLO"
    assert [call.attempt for call in transport.calls] == [1, 2, 3]
    assert clock.monotonic() == 90.0, "two waits, as long as the server said"
    assert time.monotonic() - started < 10, "and none of them real"
    assert len({call.idempotency_key for call in transport.calls}) == 1


def test_it_answers_without_a_server_too() -> None:
    transport = ScriptedTransport([Fault("network")], forever=True)
    client = CostOpsClient(base_url="https://costs.test", transport=transport, runtime=VirtualRuntime())
    assert answer("hello", client) == "HELLO"


if __name__ == "__main__":
    test_it_records_what_it_used()
    test_it_survives_an_outage_of_minutes()
    test_it_answers_without_a_server_too()
    print("3 tests passed")
