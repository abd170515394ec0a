"""The one grammar of decimals as text."""

from __future__ import annotations

from decimal import Decimal

import pytest

from llm_cost_ops.wire.decimals import from_text


@pytest.mark.parametrize("text", ["0", "-1.5", "123456789012345678.123456789012345678"])
def test_the_grammar_accepts(text: str) -> None:
    assert from_text(text) == Decimal(text)


@pytest.mark.parametrize(
    "text",
    ["", "1e5", "NaN", "+1", "01", ".5", "1.", "1_000", "١", "1234567890123456789", "0." + "1" * 19, "1\n"],
)
def test_the_grammar_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="plain decimal"):
        from_text(text)
