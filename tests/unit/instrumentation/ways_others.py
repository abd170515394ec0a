"""The ways to call the clients of mistralai, cohere and boto3."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from tests.sdk_stub import BATCH_LINES
from tests.unit.instrumentation.matrix import Ways, close, entered, first, is_async, items, settle

MESSAGES: Any = [{"role": "user", "content": "hi"}]

MISTRAL = Ways()
MISTRAL_MODEL = "mistral-large-latest"


class AsyncMistral:
    """The client of mistralai, whose methods for both kinds are in one class."""

    def __init__(self, sdk: Any) -> None:
        self.sdk = sdk


def _mistral(c: Any, resource: str, method: str) -> Any:
    if is_async(c):
        return getattr(getattr(c.sdk, resource), f"{method}_async")
    return getattr(getattr(c, resource), method)


@MISTRAL("create")
async def mistral_create(c: Any) -> None:
    answer = await settle(_mistral(c, "chat", "complete")(model=MISTRAL_MODEL, messages=MESSAGES))
    assert answer.usage.prompt_tokens == 1000


@MISTRAL("parse")
async def mistral_parse(c: Any) -> None:
    import pydantic

    kind: Any = pydantic.create_model("Value", value=(int, ...))
    asked: Any = {"model": MISTRAL_MODEL, "messages": MESSAGES}
    answer = await settle(_mistral(c, "chat", "parse")(kind, **asked))
    assert answer.choices[0].message.parsed.value == 1


@MISTRAL("stream")
async def mistral_stream(c: Any) -> None:
    events = await settle(_mistral(c, "chat", "stream")(model=MISTRAL_MODEL, messages=MESSAGES))
    assert len(await items(events)) == 5


@MISTRAL("fill in the middle")
async def mistral_fim(c: Any) -> None:
    answer = await settle(_mistral(c, "fim", "complete")(model="codestral-latest", prompt="def"))
    assert answer.usage.prompt_tokens == 1000


def _conversations(c: Any, method: str) -> Any:
    if is_async(c):
        return getattr(c.sdk.beta.conversations, f"{method}_async")
    return getattr(c.beta.conversations, method)


@MISTRAL("conversation: start")
async def mistral_conversation(c: Any) -> None:
    answer = await settle(_conversations(c, "start")(model=MISTRAL_MODEL, inputs="hi"))
    assert answer.usage.connector_tokens == 400


@MISTRAL("conversation: stream")
async def mistral_conversation_stream(c: Any) -> None:
    events = await settle(_conversations(c, "start_stream")(model=MISTRAL_MODEL, inputs="hi"))
    assert len(await items(events)) == 4


@MISTRAL("conversation: append")
async def mistral_conversation_append(c: Any) -> None:
    answer = await settle(_conversations(c, "append")(conversation_id="conv_1", inputs="hi"))
    assert answer.usage.completion_tokens == 7


@MISTRAL("conversation: stream closed early", "unknown")
async def mistral_conversation_closed(c: Any) -> None:
    events = await settle(_conversations(c, "start_stream")(model=MISTRAL_MODEL, inputs="hi"))
    async with entered(events) as inside:
        await first(inside)


@MISTRAL("embeddings", "input")
async def mistral_embeddings(c: Any) -> None:
    answer = await settle(_mistral(c, "embeddings", "create")(model="mistral-embed", inputs=["hi"]))
    assert answer.usage.prompt_tokens == 1000


@MISTRAL("batch: results", records=BATCH_LINES)
async def mistral_batch(c: Any) -> None:
    answer = await settle(_mistral(c, "files", "download")(file_id="file-results"))
    assert len(await settle(answer.aread() if is_async(c) else answer.read())) > 100


@MISTRAL("retried by the SDK")
async def mistral_retried(c: Any) -> None:
    try:
        from mistralai.client.utils import BackoffStrategy, RetryConfig
    except ImportError:
        from mistralai.utils import BackoffStrategy, RetryConfig  # before 2.0

    asked: Any = {"model": f"mistral-fails-once-{id(c)}", "messages": MESSAGES}
    retries = RetryConfig("backoff", BackoffStrategy(10, 20, 1.5, 1000), retry_connection_errors=True)
    answer = await settle(_mistral(c, "chat", "complete")(**asked, retries=retries))
    assert answer.usage.prompt_tokens == 1000


@MISTRAL("stream closed early", "unknown")
async def mistral_closed(c: Any) -> None:
    events = await settle(_mistral(c, "chat", "stream")(model=MISTRAL_MODEL, messages=MESSAGES))
    async with entered(events) as inside:
        await first(inside)


@MISTRAL("connection lost in a stream", "unknown")
async def mistral_lost(c: Any) -> None:
    asked: Any = {"model": "mistral-drops", "messages": MESSAGES}
    events = await settle(_mistral(c, "chat", "stream")(**asked))
    with pytest.raises(Exception, match=r"(?i)connection|closed|peer"):
        await items(events)


@MISTRAL("20 at once", records=20)
async def mistral_twenty(c: Any) -> None:
    if is_async(c):
        await asyncio.gather(*(mistral_create(c) for _ in range(20)))
        return
    asked: Any = {"model": MISTRAL_MODEL, "messages": MESSAGES}
    await asyncio.gather(*(asyncio.to_thread(c.chat.complete, **asked) for _ in range(20)))


@MISTRAL("error", records=0)
async def mistral_error(c: Any) -> None:
    with pytest.raises(Exception, match="this is bad"):
        await settle(_mistral(c, "chat", "complete")(model="bad-request", messages=MESSAGES))


COHERE = Ways()
COHERE_MODEL = "command-a-03-2025"


@COHERE("create")
async def cohere_create(c: Any) -> None:
    answer = await settle(c.chat(model=COHERE_MODEL, messages=MESSAGES))
    assert answer.usage.tokens.input_tokens == 1000


@COHERE("stream")
async def cohere_stream(c: Any) -> None:
    assert len(await items(c.chat_stream(model=COHERE_MODEL, messages=MESSAGES))) == 7


@COHERE("raw response")
async def cohere_raw(c: Any) -> None:
    answer = await settle(c.with_raw_response.chat(model=COHERE_MODEL, messages=MESSAGES))
    assert answer.headers["x-stub"] == "yes"


@COHERE("embeddings", "input")
async def cohere_embed(c: Any) -> None:
    asked: Any = {
        "model": "embed-v4.0",
        "texts": ["hi"],
        "input_type": "search_query",
        "embedding_types": ["float"],
    }
    assert (await settle(c.embed(**asked))).embeddings.float_ == [[0.1, 0.2]]


@COHERE("rerank", "units")
async def cohere_rerank(c: Any) -> None:
    answer = await settle(c.rerank(model="rerank-v3.5", query="hi", documents=["a", "b"]))
    assert answer.results[0].index == 1


@COHERE("stream closed early", "unknown")
async def cohere_closed(c: Any) -> None:
    events = c.chat_stream(model=COHERE_MODEL, messages=MESSAGES)
    await first(events)
    await close(events)


@COHERE("stream dropped", "unknown")
async def cohere_dropped(c: Any) -> None:
    events = c.chat_stream(model=COHERE_MODEL, messages=MESSAGES)
    await first(events)
    del events
    gc.collect()


@COHERE("connection lost in a stream", "unknown")
async def cohere_lost(c: Any) -> None:
    with pytest.raises(Exception, match=r"(?i)connection|closed|peer"):
        await items(c.chat_stream(model="command-drops", messages=MESSAGES))


@COHERE("retried by the SDK")
async def cohere_retried(c: Any) -> None:
    asked: Any = {"model": f"command-fails-once-{id(c)}", "messages": MESSAGES}
    assert (await settle(c.chat(**asked))).usage.tokens.input_tokens == 1000


@COHERE("20 at once", records=20)
async def cohere_twenty(c: Any) -> None:
    if is_async(c):
        await asyncio.gather(*(cohere_stream(c) for _ in range(20)))
        return
    asked: Any = {"model": COHERE_MODEL, "messages": MESSAGES}
    await asyncio.gather(*(asyncio.to_thread(c.chat, **asked) for _ in range(20)))


@COHERE("error", records=0)
async def cohere_error(c: Any) -> None:
    with pytest.raises(Exception, match="this is bad"):
        await settle(c.chat(model="bad-request", messages=MESSAGES))


BEDROCK = Ways()
BEDROCK_MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
CONVERSE: dict[str, Any] = {
    "modelId": BEDROCK_MODEL,
    "messages": [{"role": "user", "content": [{"text": "hi"}]}],
}
INVOKE = {"modelId": BEDROCK_MODEL, "body": json.dumps({"max_tokens": 1})}


@BEDROCK("create")
async def converse(c: Any) -> None:
    assert c.converse(**CONVERSE)["usage"]["inputTokens"] == 1000


@BEDROCK("stream")
async def converse_stream(c: Any) -> None:
    events = list(c.converse_stream(**CONVERSE)["stream"])
    assert [next(iter(event)) for event in events] == ["contentBlockDelta"] * 4 + ["metadata"]


@BEDROCK("invoke_model")
async def invoke(c: Any) -> None:
    assert b"hello" in c.invoke_model(**INVOKE)["body"].read()


@BEDROCK("invoke_model, stream")
async def invoke_stream(c: Any) -> None:
    assert len(list(c.invoke_model_with_response_stream(**INVOKE)["body"])) == 17


@BEDROCK("stream closed early", "unknown")
async def bedrock_closed(c: Any) -> None:
    stream = c.converse_stream(**CONVERSE)["stream"]
    next(iter(stream))
    stream.close()


@BEDROCK("stream never read", "unknown")
async def bedrock_never_read(c: Any) -> None:
    c.converse_stream(**CONVERSE)


@BEDROCK("retried by the SDK")
async def bedrock_retried(c: Any) -> None:
    asked = {**CONVERSE, "modelId": f"anthropic.fails-once-{id(c)}"}
    assert c.converse(**asked)["usage"]["inputTokens"] == 1000


@BEDROCK("20 at once", records=20)
async def bedrock_twenty(c: Any) -> None:
    await asyncio.gather(*(asyncio.to_thread(c.converse, **CONVERSE) for _ in range(20)))


@BEDROCK("error", records=0)
async def bedrock_error(c: Any) -> None:
    with pytest.raises(Exception, match="400"):
        c.converse(**{**CONVERSE, "modelId": "bad-request"})
