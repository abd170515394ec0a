"""The ways to call google-genai's client, for the Gemini API and for Vertex."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from tests.sdk_stub import BATCH_LINES
from tests.unit.instrumentation.matrix import Ways, cancel_reading, first, is_async, items, settle

MODEL = "gemini-2.5-flash"
ASK: dict[str, Any] = {"model": MODEL, "contents": "hi"}

WAYS = Ways()


@WAYS("create")
async def create(c: Any) -> None:
    answer = await settle(c.models.generate_content(**ASK))
    assert answer.usage_metadata.prompt_token_count == 1000


@WAYS("stream")
async def stream(c: Any) -> None:
    assert len(await items(await settle(c.models.generate_content_stream(**ASK)))) == 6


@WAYS("chats")
async def chat(c: Any) -> None:
    assert (await settle(c.chats.create(model=MODEL).send_message("hi"))).text == "hello"


@WAYS("chats, stream")
async def chat_stream(c: Any) -> None:
    parts = await settle(c.chats.create(model=MODEL).send_message_stream("hi"))
    assert len(await items(parts)) == 6


@WAYS("parse")
async def parse(c: Any) -> None:
    config: Any = {"response_mime_type": "application/json", "response_schema": {"type": "STRING"}}
    assert (await settle(c.models.generate_content(**ASK, config=config))).text == "hello"


@WAYS("interactions")
async def interactions(c: Any) -> None:
    answer = await settle(c.interactions.create(model=MODEL, input="hi"))
    assert answer.usage.total_input_tokens == 1000


@WAYS("interactions, stream")
async def interactions_stream(c: Any) -> None:
    events = await settle(c.interactions.create(model=MODEL, input="hi", stream=True))
    assert len(await items(events)) == 3


@WAYS("background, fetched until it is done")
async def interactions_background(c: Any) -> None:
    answer = await settle(c.interactions.create(model=MODEL, input="hi", background=True))
    while answer.status == "in_progress":
        answer = await settle(c.interactions.get(answer.id))
    assert answer.usage.total_output_tokens == 7


@WAYS("embeddings", "unknown")
async def embeddings(c: Any) -> None:
    asked: Any = {"model": "gemini-embedding-001", "contents": "hi"}
    assert (await settle(c.models.embed_content(**asked))).embeddings[0].values == [0.1, 0.2]


@WAYS("batch: results", records=BATCH_LINES)
async def batch_inline(c: Any) -> None:
    batch = await settle(c.batches.get(name="batches/stub"))
    assert len(batch.dest.inlined_responses) == BATCH_LINES + 1


@WAYS("batch: results read twice", records=BATCH_LINES)
async def batch_inline_twice(c: Any) -> None:
    await batch_inline(c)
    await batch_inline(c)


@WAYS("stream closed early", "unknown")
async def closed_early(c: Any) -> None:
    parts = await settle(c.models.generate_content_stream(**ASK))
    await first(parts)
    await settle(parts.aclose() if hasattr(parts, "aclose") else parts.close())
    # The SDK leaves the inner generator to the collector, and its end to the loop.
    del parts
    gc.collect()


@WAYS("stream dropped", "unknown")
async def dropped(c: Any) -> None:
    parts = await settle(c.models.generate_content_stream(**ASK))
    await first(parts)
    del parts
    gc.collect()


@WAYS("stream cancelled", "unknown", modes=("async",))
async def cancelled(c: Any) -> None:
    asked: Any = {**ASK, "model": f"{MODEL}-stalls"}
    await cancel_reading(await c.models.generate_content_stream(**asked))
    gc.collect()


@WAYS("20 at once", records=20)
async def twenty(c: Any) -> None:
    if is_async(c):
        await asyncio.gather(*(stream(c) for _ in range(20)))
        return
    calls = [asyncio.to_thread(c.models.generate_content, **ASK) for _ in range(20)]
    assert {answer.text for answer in await asyncio.gather(*calls)} == {"hello"}


@WAYS("error", records=0)
async def error(c: Any) -> None:
    with pytest.raises(Exception, match="no such path"):
        await settle(c.models.get(model="missing"))
    with pytest.raises(Exception, match="this is bad"):
        await settle(c.models.generate_content(model="bad-request", contents="hi"))


@WAYS("counting tokens", records=0)
async def count_tokens(c: Any) -> None:
    assert (await settle(c.models.count_tokens(**ASK))).total_tokens == 5
