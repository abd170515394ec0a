"""What does an instrumented SDK cost the caller's thread, beside the same SDK as it is?

python benchmarks/bench_instrument.py [bursts]    (wants the extra [sdks])

The SDK's own client calls a transport that answers at once. The figures are CPU time of the caller's thread,
in bursts that take turns, the least of many. "hook" is what the call itself does more: its records go to
a queue that nobody reads. "recorder" has the recorder's thread beside it, which reads answers and writes
records while the caller goes on: they take turns at the interpreter, and each turn costs the caller a little.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx2
import openai

from llm_cost_ops import ClientConfig, CostOpsClient
from llm_cost_ops.client.attribution import Attributes, current_attributes
from llm_cost_ops.instrumentation import Options, instrument
from llm_cost_ops.instrumentation.calls import Call
from llm_cost_ops.instrumentation.fetched import ResultLines

BURST = 10
LIMIT = 50.0
"""What a call may cost more, in microseconds."""
CHUNKS = 200
ASKED: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi " * 2000}]}
USAGE = {"prompt_tokens": 2000, "completion_tokens": 500, "total_tokens": 2500}


def answer() -> bytes:
    message = {"role": "assistant", "content": "word " * 500}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_760_000_000, "model": "gpt-4o"}
    return json.dumps({**head, "choices": [choice], "usage": USAGE}).encode()


class Events(httpx2.SyncByteStream):
    """The chunks of a chat, one at a time."""

    def __init__(self) -> None:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}
        choice = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
        chunk = {**head, "choices": [choice]}
        last = json.dumps({**head, "choices": [], "usage": USAGE})
        events = [json.dumps(chunk)] * CHUNKS + [last, "[DONE]"]
        self.parts = [f"data: {event}\n\n".encode() for event in events]

    def __iter__(self) -> Any:
        return iter(self.parts)


def transport() -> httpx2.MockTransport:
    body, events = answer(), Events()

    def handle(request: httpx2.Request) -> httpx2.Response:
        if b'"stream":true' in request.content:
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=events)
        return httpx2.Response(200, headers={"content-type": "application/json"}, content=body)

    return httpx2.MockTransport(handle)


def sdk() -> openai.OpenAI:
    return openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=transport()))


def microseconds(call: Callable[[], object], count: int) -> float:
    began = time.thread_time()
    for _ in range(count):
        call()
    return (time.thread_time() - began) / count * 1e6


class Queue:
    """A sink that only takes."""

    def __init__(self) -> None:
        self.taken: deque[object] = deque(maxlen=BURST)

    def observe(self, build: object, attributes: object) -> None:
        self.taken.append((build, attributes))

    observe_abandoned = observe

    def expect(self) -> None:
        pass


def compare(
    name: str, ways: list[Callable[[], object]], rest: Callable[[], object], bursts: int
) -> list[float]:
    """Print what the other ways cost more than the first."""
    least = [float("inf")] * len(ways)
    for _ in range(bursts):
        for index, way in enumerate(ways):
            least[index] = min(least[index], microseconds(way, BURST))
        rest()
    more = [each - least[0] for each in least[1:]]
    print(f"{name:40} bare {least[0]:8.1f} us   hook +{more[0]:6.1f} us   recorder +{more[1]:6.1f} us")
    return more


def batch_line() -> float:
    """What a line of a batch's results takes, in microseconds."""
    result = {"status_code": 200, "body": json.loads(answer())}
    line = json.dumps({"id": "b", "custom_id": "c", "response": result}).encode() + b"\n"
    options = Options(sink=Queue(), attributes=dict, provider="openai")
    content, count, least = line * 1000, 1000, float("inf")
    for _ in range(10):
        lines = ResultLines(lambda: Call(options, "", "openai", known_host=True), "file")
        pieces = [content[start : start + 65536] for start in range(0, len(content), 65536)]
        least = min(least, microseconds(partial(list, map(lines.feed, pieces)), 1) / count)
    return least


def main() -> None:
    bursts = int(sys.argv[1] if len(sys.argv) > 1 else 100)
    with CostOpsClient(config=ClientConfig(base_url="sqlite://", organization_id="acme")) as client:
        bare, hooked, recorded = sdk(), sdk(), client.instrument(sdk())
        stated = Attributes(labels={"feature": "search"})
        attributes = lambda: current_attributes().over(stated)
        instrument(hooked, Options(sink=Queue(), attributes=attributes, sdk="openai"))

        def rest() -> None:
            assert client.flush(60).dropped == 0

        def create(c: openai.OpenAI) -> object:
            return c.chat.completions.create(**ASKED)

        def stream(c: openai.OpenAI) -> object:
            return list(c.chat.completions.create(**ASKED, stream=True))

        def asking(c: openai.OpenAI) -> object:
            options: Any = {"include_usage": True}
            return list(c.chat.completions.create(**ASKED, stream=True, stream_options=options))

        def each(way: Callable[[openai.OpenAI], object]) -> list[Callable[[], object]]:
            return [partial(way, c) for c in (bare, hooked, recorded)]

        hook, _ = compare("chat", each(create), rest, bursts)
        for name, way in (("stream that asks for usage", asking), ("stream that we ask for usage", stream)):
            more, _ = compare(f"{name}, {CHUNKS} chunks", each(way), rest, max(bursts // 10, 5))
            print(f"{'':40} hook, a chunk: {more / CHUNKS:.2f} us")
        for c in (bare, hooked, recorded):
            c.close()
    print(f"a line of a batch's results, 3 KB: {batch_line():.1f} us")
    print(f"the hook costs a call at most {LIMIT:.0f} us: {'yes' if hook <= LIMIT else 'NO'}")


if __name__ == "__main__":
    main()
