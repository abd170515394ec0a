"""What an observer passes on of an answer is the answer, however its bytes arrive."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.instrumentation import Options
from llm_cost_ops.instrumentation.answers import watch
from llm_cost_ops.instrumentation.calls import Call

CHUNK = {"id": "chatcmpl-1", "model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": "ü"}}]}
COUNTS = {"prompt_tokens": 1000, "completion_tokens": 7, "total_tokens": 1007}
USAGE = {**CHUNK, "choices": [], "usage": COUNTS}


class Sink:
    def __init__(self) -> None:
        self.built: list[Any] = []

    def observe(self, build: Any, attributes: Any) -> None:
        self.built.append(build)

    observe_abandoned = observe

    def expect(self) -> None:
        """Nothing is collected here."""


def text(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode()


blocks = st.lists(
    st.sampled_from([text(CHUNK), text(USAGE), b": a comment", b"event: x\n" + text(CHUNK), b""]), max_size=8
)
endings = st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"])
lasts = st.sampled_from([b"", b"data: [DONE]\n\n", b"data: [DONE]", b"data: {"])


@given(blocks, endings, lasts, st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_bytes_pass_as_they_came_but_for_the_chunk_that_nobody_asked_for(
    parts: list[bytes], ending: bytes, last: bytes, cuts: list[int], hide: bool
) -> None:
    body = b"".join(part + ending for part in parts) + last
    sink = Sink()
    call = Call(Options(sink=sink, attributes=dict), "openai.chat", "openai", known_host=True, model="gpt-4o")
    seen = watch(call, "text/event-stream", "", lambda _, data: data, hide=hide)
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    passed = b"".join(seen.feed(body[start:end]) for start, end in pairwise(places))
    passed += seen.rest()
    for finished in (True, False):
        seen.finish(finished=finished)
    assert passed == (body.replace(text(USAGE) + ending, b"") if hide else body)
    (build,) = sink.built
    record = build()
    assert record.total_tokens == (1007 if text(USAGE) in body else None)
