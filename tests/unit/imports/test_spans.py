from __future__ import annotations

import pytest

from llm_cost_ops.imports.spans import Span, observed

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALL: dict[str, object] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.usage.input_tokens": 3,
    "gen_ai.usage.output_tokens": 1,
}


@pytest.mark.parametrize(
    ("trace", "span", "key"),
    [
        (TRACE, SPAN, f"{TRACE}:{SPAN}"),
        ("", SPAN, ""),
        ("0" * 32, SPAN, ""),
        (TRACE, "0" * 16, ""),
    ],
)
def test_ids_of_zeros_make_no_key(trace: str, span: str, key: str) -> None:
    """Calls of an exporter that knows no ids would share it, and all but the first be lost."""
    record = observed(Span(CALL, trace, span))
    assert (record.idempotency_key, record.input_tokens) == (key, 3)
