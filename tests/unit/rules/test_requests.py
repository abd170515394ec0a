"""The rules of requests, as they stand in a chain."""

from __future__ import annotations

from typing import Any

import pytest

from llm_cost_ops import CostOpsClient, ValidationError
from llm_cost_ops._gen.messages import SubmitUsageRequest


class _Derived(SubmitUsageRequest):
    pass


class _Deriving:
    """An interceptor that passes on a request of a class of its own."""

    def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        derived = _Derived(**{name: getattr(request, name) for name in request.__struct_fields__})
        return continuation(derived, context)


def test_a_derived_request_has_the_rules_of_its_method() -> None:
    with (
        CostOpsClient(base_url="sqlite://", interceptors=[_Deriving()]) as client,
        pytest.raises(ValidationError, match="trace_id must be 32 hexadecimal digits"),
    ):
        client.usage.submit(organization_id="acme", provider="openai", model_id="gpt-4o", trace_id="nonsense")
