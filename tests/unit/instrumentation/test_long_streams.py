"""What of a stream's middle decides its cost is kept, however long the stream, and a cut one has no cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from llm_cost_ops import UsageRecord
from llm_cost_ops.instrumentation.calls import Call, Options
from llm_cost_ops.instrumentation.events import EventReader

COUNTS = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
# More than are kept of each kind.
MANY = 100


class _Sink:
    def __init__(self) -> None:
        self.records: list[UsageRecord] = []

    def observe(self, build: Callable[[], UsageRecord], _attributes: Any) -> None:
        self.records.append(build())

    observe_abandoned = observe

    def expect(self) -> None:
        """Nothing has to be made ready."""


def seen(events: list[Any], api: str, provider: str, *, finished: bool = True) -> UsageRecord:
    """The record that is made of the events of a stream."""
    sink, reader = _Sink(), EventReader()
    call = Call(Options(sink=sink, attributes=dict), api, provider, known_host=True, model="m")
    call.events = reader.events
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event)
        reader.feed(f"data: {data}\n\n".encode())
    call.finish(finished=finished)
    [record] = sink.records
    return record


def chunk(index: int = 0, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    delta = fields.pop("delta", {"content": "x"})
    choices = [{"index": index, "delta": delta, "finish_reason": reason}]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": choices, **fields}


def candidate(index: int = 0, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    counts = {"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 11}
    ended = {"finishReason": reason} if reason else {}
    found = {"index": index, "content": {"parts": [{"text": "x"}]}, **ended, **fields}
    return {"candidates": [found], "modelVersion": "gemini-3-pro", "usageMetadata": counts}


@pytest.mark.parametrize("end", [[], ["[DONE]"]], ids=["bare", "done"])
@pytest.mark.parametrize("usage", [None, COUNTS], ids=["at the end", "in each"])
def test_an_answer_that_ended_early_among_several(end: list[str], usage: dict[str, int] | None) -> None:
    events: list[Any] = [chunk(0), chunk(1), *(chunk(each % 2) for each in range(9))]
    events += [chunk(0, "stop", usage=usage), *(chunk(1, usage=usage) for _ in range(MANY))]
    events += [chunk(1, "length", usage=COUNTS), *end]
    record = seen(events, "openai.chat", "acme")
    assert (record.output_tokens, record.quality) == (2, "unspecified")


def test_a_candidate_that_ended_early_among_several() -> None:
    events = [candidate(0), candidate(1), *(candidate(each % 2) for each in range(9))]
    events += [candidate(0, "STOP"), *(candidate(1) for _ in range(MANY)), candidate(1, "STOP")]
    assert seen(events, "google.generate", "google").quality == "unspecified"
    assert seen(events[:-1], "google.generate", "google").quality == "unknown"


def test_each_of_the_most_answers_is_seen_to_end() -> None:
    events = [chunk(index) for index in range(128)]
    events += [chunk(index, "stop", usage=COUNTS if index == 127 else None) for index in range(128)]
    assert seen(events, "openai.chat", "acme").quality == "unspecified"


def test_tools_that_groq_ran_in_the_middle() -> None:
    tools = [{"executed_tools": [{"index": index, "type": "search"}]} for index in range(3)]
    events = [chunk() for _ in range(20)]
    events += [chunk(delta=delta) for delta in tools]
    events += [*(chunk() for _ in range(MANY)), chunk(0, "stop", x_groq={"id": "r", "usage": COUNTS})]
    record = seen(events, "openai.chat", "groq")
    assert (record.meters, record.input_tokens) == ({"web_searches": 3}, 9)


def test_searches_of_gemini_in_the_middle() -> None:
    events = [candidate() for _ in range(20)]
    events += [candidate(groundingMetadata={"webSearchQueries": [query]}) for query in "ab"]
    events += [*(candidate() for _ in range(MANY)), candidate(0, "STOP")]
    assert seen(events, "google.generate", "google").meters == {"web_searches": 2}


def test_the_mark_of_the_end_reaches_the_normalizer() -> None:
    events: list[Any] = [chunk(usage=COUNTS), chunk(usage=COUNTS)]
    assert seen([*events, "[DONE]"], "openai.chat", "acme").quality == "unspecified"
    assert seen(events, "openai.chat", "acme").quality == "unknown"


@pytest.mark.parametrize(
    ("provider", "usage", "finished"),
    [
        ("x-ai", {"cost_in_usd_ticks": 150_000_000}, True),
        ("perplexity", {"cost": {"total_cost": 0.015}}, True),
        ("requesty", {"cost": 0.015}, False),
        ("requesty", {"cost": 0.015}, True),
    ],
)
def test_a_stream_that_is_cut_has_no_cost(provider: str, usage: dict[str, Any], *, finished: bool) -> None:
    events = [chunk(usage={**COUNTS, **usage})]
    record = seen(events, "openai.chat", provider, finished=finished)
    assert (record.quality, record.reported_cost) == ("unknown", None)


def test_a_body_that_broke_off_has_no_cost() -> None:
    """All that was read may look whole."""
    events = [chunk(0, "stop", usage={**COUNTS, "cost": 0.015})]
    record = seen(events, "openai.chat", "requesty", finished=False)
    assert (record.quality, record.reported_cost) == ("unknown", None)
