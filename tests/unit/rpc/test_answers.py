from __future__ import annotations

import pytest

from llm_cost_ops._gen.messages import (
    BatchReceipt,
    BatchSubmitUsageRequest,
    BatchSubmitUsageResponse,
    SubmitResult,
    SubmitUsageRequest,
    SubmitUsageResponse,
    UsageReceipt,
    UsageRecord,
)
from llm_cost_ops._gen.methods import BATCH_SUBMIT_USAGE, SUBMIT_USAGE
from llm_cost_ops.rpc import answers
from llm_cost_ops.rpc.answers import missing_answer

RECORD = UsageRecord(organization_id="o")
RECEIPT = UsageReceipt(usage_id="1")


def test_the_bytes_of_an_answer_that_says_something_are_not_looked_into(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stated(*given: object) -> bool:
        raise AssertionError("it was decoded again")

    monkeypatch.setattr(answers, "_stated", stated)
    single = SubmitUsageResponse(data=RECEIPT)
    assert not missing_answer(SUBMIT_USAGE, SubmitUsageRequest(usage=RECORD), single, b"{}")
    batch = BatchSubmitUsageResponse(data=BatchReceipt(results=[SubmitResult(usage=RECEIPT)]))
    assert not missing_answer(BATCH_SUBMIT_USAGE, BatchSubmitUsageRequest(records=[RECORD]), batch, b"{}")
    with pytest.raises(AssertionError, match="decoded again"):
        missing_answer(SUBMIT_USAGE, SubmitUsageRequest(usage=RECORD), SubmitUsageResponse(), b"{}")
