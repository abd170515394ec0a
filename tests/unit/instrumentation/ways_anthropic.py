"""The ways to call anthropic's clients."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from tests.sdk_stub import BATCH_LINES
from tests.unit.instrumentation.matrix import (
    Ways,
    cancel_reading,
    close,
    entered,
    fail_reading,
    first,
    is_async,
    items,
    settle,
    time_out,
)

MODEL = "claude-stub"
ASKED: dict[str, Any] = {"max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}

WAYS = Ways()


def model_of(c: Any, suffix: str = "") -> str:
    """Bedrock names models otherwise."""
    name = f"{MODEL}{suffix}"
    return f"us.anthropic.{name}-v1:0" if type(c).__name__.endswith("Bedrock") else name


def ask(c: Any, suffix: str = "") -> dict[str, Any]:
    return {"model": model_of(c, suffix), **ASKED}


@WAYS("create")
async def create(c: Any) -> None:
    assert (await settle(c.messages.create(**ask(c)))).usage.input_tokens == 1000


@WAYS("compressed answer")
async def gzipped(c: Any) -> None:
    assert (await settle(c.messages.create(**ask(c, "-gzip")))).usage.input_tokens == 1000


@WAYS("beta")
async def beta(c: Any) -> None:
    assert (await settle(c.beta.messages.create(**ask(c)))).usage.input_tokens == 1000


@WAYS("parse")
async def parse(c: Any) -> None:
    import pydantic

    kind: Any = pydantic.create_model("Value", value=(int, ...))
    answer = await settle(c.messages.parse(**ask(c), output_format=kind))
    assert answer.parsed_output.value == 1


@WAYS("stream")
async def stream(c: Any) -> None:
    assert len(await items(await settle(c.messages.create(**ask(c), stream=True)))) == 17


@WAYS("stream helper")
async def stream_helper(c: Any) -> None:
    async with entered(c.messages.stream(**ask(c))) as events:
        assert "".join(await items(events.text_stream)) == "hello" * 12
        assert (await settle(events.get_final_message())).usage.output_tokens == 7


@WAYS("stream, compressed")
async def stream_gzipped(c: Any) -> None:
    assert len(await items(await settle(c.messages.create(**ask(c, "-gzip"), stream=True)))) == 17


@WAYS("raw response of a stream")
async def stream_raw(c: Any) -> None:
    answer = await settle(c.messages.with_raw_response.create(**ask(c), stream=True))
    assert answer.headers["x-stub"] == "yes"
    assert len(await items(await settle(answer.parse()))) == 17


@WAYS("streaming response, by bytes")
async def stream_by_bytes(c: Any) -> None:
    async with entered(c.messages.with_streaming_response.create(**ask(c), stream=True)) as answer:
        assert len(await settle(answer.read())) > 1000


@WAYS("raw response")
async def raw(c: Any) -> None:
    answer = await settle(c.messages.with_raw_response.create(**ask(c)))
    assert answer.headers["x-stub"] == "yes"
    assert (await settle(answer.parse())).usage.output_tokens == 7


@WAYS("streaming response")
async def streaming(c: Any) -> None:
    async with entered(c.messages.with_streaming_response.create(**ask(c))) as answer:
        assert (await settle(answer.parse())).usage.output_tokens == 7


@WAYS("with_options")
async def with_options(c: Any) -> None:
    await settle(c.with_options(timeout=5).messages.create(**ask(c)))


@WAYS("client.post")
async def post(c: Any) -> None:
    await settle(c.post("/v1/messages", body=ask(c), cast_to=object))


@WAYS("retried by the SDK")
async def retried(c: Any) -> None:
    await settle(c.messages.create(**ask(c, f"-fails-once-{id(c)}")))


@WAYS("batch: results", records=BATCH_LINES)
async def batch_results(c: Any) -> None:
    assert len(await items(await settle(c.messages.batches.results("msgbatch_1")))) == BATCH_LINES + 2


@WAYS("batch: results read twice", records=BATCH_LINES)
async def batch_results_twice(c: Any) -> None:
    await batch_results(c)
    lines = await settle(c.messages.batches.results("msgbatch_1"))
    await first(lines)
    await items(await settle(c.beta.messages.batches.results("msgbatch_1")))


@WAYS("batch: results, compressed", records=BATCH_LINES)
async def batch_results_gzipped(c: Any) -> None:
    assert len(await items(await settle(c.messages.batches.results("msgbatch_gzip")))) == BATCH_LINES + 2


@WAYS("stream closed early", "unknown")
async def closed_early(c: Any) -> None:
    events = await settle(c.messages.create(**ask(c), stream=True))
    await first(events)
    await close(events)


@WAYS("stream dropped", "unknown")
async def dropped(c: Any) -> None:
    events = await settle(c.messages.create(**ask(c), stream=True))
    await first(events)
    del events
    gc.collect()


@WAYS("stream never read", "unknown")
async def never_read(c: Any) -> None:
    await settle(c.messages.create(**ask(c), stream=True))
    gc.collect()


@WAYS("exception of the caller's in a stream", "unknown")
async def failing(c: Any) -> None:
    await fail_reading(await settle(c.messages.create(**ask(c), stream=True)))


@WAYS("timeout in a stream", "unknown")
async def timed_out(c: Any) -> None:
    events = await settle(c.messages.create(**ask(c, "-stalls"), stream=True, timeout=1))
    await time_out(events)


@WAYS("connection lost in a stream", "unknown")
async def lost(c: Any) -> None:
    events = await settle(c.messages.create(**ask(c, "-drops"), stream=True))
    with pytest.raises(Exception, match=r"(?i)connection|closed|peer"):
        await items(events)


@WAYS("stream cancelled", "unknown", modes=("async",))
async def cancelled(c: Any) -> None:
    await cancel_reading(await c.messages.create(**ask(c, "-stalls"), stream=True))


@WAYS("20 at once", records=20)
async def twenty(c: Any) -> None:
    if is_async(c):
        await asyncio.gather(*(stream(c) for _ in range(20)))
        return
    asked = ask(c)
    calls = [asyncio.to_thread(c.messages.create, **asked) for _ in range(20)]
    assert {answer.usage.input_tokens for answer in await asyncio.gather(*calls)} == {1000}


@WAYS("error", records=0)
async def error(c: Any) -> None:
    with pytest.raises(Exception, match="no"):
        await settle(c.with_options(max_retries=0).messages.create(**ask(c, "-always-fails")))


@WAYS("counting tokens", records=0)
async def count_tokens(c: Any) -> None:
    asked: Any = {"model": model_of(c), "messages": ASKED["messages"]}
    assert (await settle(c.messages.count_tokens(**asked))).input_tokens == 5
