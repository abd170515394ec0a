"""A known file in which something is not as it should be gives records and reasons, never an exception."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops import UsageRecord
from llm_cost_ops.imports import UsageFile
from llm_cost_ops.imports.reader import FORMATS
from tests.unit.imports import test_formats as pages
from tests.unit.imports import test_gateways as exports

CHAT = {
    "gen_ai__operation__name": "chat",
    "gen_ai__usage__input_tokens": 5,
    "gen_ai__usage__output_tokens": 5,
    "gen_ai__response__model": "gpt-4o",
}
INFERENCE = {"openinference.span.kind": "LLM", "llm.token_count.prompt": 5, "llm.model_name": "gpt-4o"}
COUNTS = (5, 1, 2, 1)
ACTIVITY = {"date": "2026-03-10", "model_permaslug": "x/y", "model": "x/y", "requests": 2, "usage": 0.1}
RUN = {"id": "r", "run_type": "llm", "prompt_tokens": 5, "extra": {"metadata": {"ls_model_name": "gpt-4o"}}}
COSTS = {"amount": "5", "currency": "USD", "cost_type": "tokens"}
OPENAI_COST = {"object": "organization.costs.result", "amount": {"value": 0.06, "currency": "usd"}}
CONSOLE_ROW = dict(
    zip(pages.CONSOLE.splitlines()[0].split(","), pages.CONSOLE.splitlines()[1].split(","), strict=True)
)
SAMPLES: list[dict[str, Any]] = [
    pages.claude_line("msg_1", 5, 1),
    {"type": "session_meta", "payload": {"id": "s"}},
    {"type": "turn_context", "payload": {"model": "gpt-5"}},
    pages.token_count(COUNTS, COUNTS),
    pages.token_count(COUNTS, None),
    pages.openai_page_of_one(),
    pages.openai_page(OPENAI_COST),
    pages.anthropic_page(pages.ANTHROPIC_ROW),
    pages.anthropic_page(COSTS),
    CONSOLE_ROW,
    exports.LITELLM,
    {"data": [ACTIVITY]},
    {"data": exports.GENERATION},
    {"data": [exports.HELICONE]},
    {"data": [exports.LANGFUSE]},
    {"id": "t", "timestamp": "2026-03-10", "observations": [exports.LANGFUSE]},
    RUN,
    {"runs": [RUN]},
    exports.otlp(exports.span(1, 0, exports.attributes(**CHAT))),
    exports.span(1, 0, exports.attributes(**CHAT)),
    {"context": {"trace_id": "0x1", "span_id": "0x2"}, "attributes": INFERENCE},
]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([1e300, -0.5, 2**60, 10**18, "1e400", "NaN", "", "{", "[]", "x" * 300, "2026-99-99"]),
    st.text(max_size=5),
    st.lists(st.one_of(st.none(), st.integers(0, 5), st.text(max_size=3)), max_size=3),
    st.dictionaries(
        st.text(max_size=3), st.one_of(st.none(), st.integers(0, 5), st.text(max_size=3)), max_size=3
    ),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each container in a value with each of its keys."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += [(value, key), *places(value[key])]
    return found


def test_every_kind_of_file_has_a_sample() -> None:
    matched = {next(each.name for each in FORMATS if each.matches(sample)) for sample in SAMPLES}
    assert matched == {each.name for each in FORMATS}


@given(st.data())
def test_spoiled_files_give_reasons(data: st.DataObject) -> None:
    objects = copy.deepcopy(data.draw(st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=3)))
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(objects)[1:] or places(objects)))
        container[key] = data.draw(JUNK)
    content = "\n".join(json.dumps(each) for each in objects).encode()
    for item in UsageFile(io.BytesIO(content), "x.jsonl"):
        assert isinstance(item.record, UsageRecord) or item.record
