"""The ways to call openai's clients."""

from __future__ import annotations

import asyncio
import gc
import io
from functools import cache
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

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": MESSAGES}
ASKED: dict[str, Any] = {"model": "gpt-4o", "input": "hi"}
USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
AUDIO = 40_000

WAYS = Ways()


@cache
def value_type() -> Any:
    import pydantic

    return pydantic.create_model("Value", value=(int, ...))


@WAYS("create")
async def create(c: Any) -> None:
    assert (await settle(c.chat.completions.create(**CHAT))).usage.prompt_tokens == 1000


@WAYS("parse")
async def parse(c: Any) -> None:
    answer = await settle(c.chat.completions.parse(**CHAT, response_format=value_type()))
    assert answer.choices[0].message.parsed.value == 1


@WAYS("beta.parse")
async def beta_parse(c: Any) -> None:
    answer = await settle(c.beta.chat.completions.parse(**CHAT, response_format=value_type()))
    assert answer.choices[0].message.parsed.value == 1


@WAYS("legacy completions")
async def completions(c: Any) -> None:
    answer = await settle(c.completions.create(model="gpt-3.5-turbo-instruct", prompt="hi"))
    assert answer.usage.prompt_tokens == 1000


@WAYS("compressed answer")
async def gzipped(c: Any) -> None:
    await settle(c.chat.completions.create(model="gpt-4o-gzip", messages=MESSAGES))


@WAYS("stream")
async def stream(c: Any) -> None:
    chunks = await items(await settle(c.chat.completions.create(**CHAT, stream=True)))
    assert len(chunks) == 5
    assert all(chunk.choices and getattr(chunk, "usage", None) is None for chunk in chunks)


@WAYS("stream that asks for usage")
async def stream_asking(c: Any) -> None:
    chunks = await items(await settle(c.chat.completions.create(**CHAT, stream=True, **USAGE)))
    assert [len(chunk.choices) for chunk in chunks] == [1, 1, 1, 1, 1, 0]
    assert chunks[-1].usage.prompt_tokens == 1000


@WAYS("stream that declines usage")
async def stream_declining(c: Any) -> None:
    options: Any = {"include_usage": False, "include_obfuscation": False}
    chunks = await settle(c.chat.completions.create(**CHAT, stream=True, stream_options=options))
    assert len(await items(chunks)) == 5


@WAYS("stream, compressed")
async def stream_gzipped(c: Any) -> None:
    asked: Any = {"model": "gpt-4o-gzip", "messages": MESSAGES, "stream": True, **USAGE}
    assert len(await items(await settle(c.chat.completions.create(**asked)))) == 6


@WAYS("stream helper")
async def stream_helper(c: Any) -> None:
    async with entered(c.chat.completions.stream(**CHAT)) as events:
        await items(events)
        final = await settle(events.get_final_completion())
        assert final.choices[0].message.content == "onetwothreefour"


@WAYS("raw response of a stream")
async def stream_raw(c: Any) -> None:
    answer = await settle(c.chat.completions.with_raw_response.create(**CHAT, stream=True))
    assert answer.headers["x-stub"] == "yes"
    assert len(await items(await settle(answer.parse()))) == 5


@WAYS("streaming response, by lines")
async def stream_streaming(c: Any) -> None:
    async with entered(c.chat.completions.with_streaming_response.create(**CHAT, stream=True)) as answer:
        assert len([line for line in await items(answer.iter_lines()) if line]) == 6


@WAYS("streaming response, by bytes")
async def stream_by_bytes(c: Any) -> None:
    async with entered(c.chat.completions.with_streaming_response.create(**CHAT, stream=True)) as answer:
        raw = answer.http_response.aiter_raw() if is_async(c) else answer.http_response.iter_raw()
        assert b"".join(await items(raw)).count(b"data: ") == 6


@WAYS("stream, host refuses stream_options", "unknown")
async def stream_refusing_options(c: Any) -> None:
    asked: Any = {"model": "gpt-4o-refuses-options", "messages": MESSAGES}
    assert len(await items(await settle(c.chat.completions.create(**asked, stream=True)))) == 5


@WAYS("raw response")
async def raw(c: Any) -> None:
    answer = await settle(c.chat.completions.with_raw_response.create(**CHAT))
    assert answer.headers["x-stub"] == "yes"
    assert (await settle(answer.parse())).usage.total_tokens == 1007


@WAYS("streaming response")
async def streaming(c: Any) -> None:
    async with entered(c.chat.completions.with_streaming_response.create(**CHAT)) as answer:
        assert (await settle(answer.parse())).usage.total_tokens == 1007


@WAYS("streaming response, compressed")
async def streaming_gzipped(c: Any) -> None:
    asked: Any = {"model": "gpt-4o-gzip", "messages": MESSAGES}
    async with entered(c.chat.completions.with_streaming_response.create(**asked)) as answer:
        raw = answer.http_response.aiter_raw() if is_async(c) else answer.http_response.iter_raw()
        assert b"".join(await items(raw))[:2] == b"\x1f\x8b"


@WAYS("with_options")
async def with_options(c: Any) -> None:
    await settle(c.with_options(timeout=5).chat.completions.create(**CHAT))


@WAYS("client.post")
async def post(c: Any) -> None:
    await settle(c.post("/chat/completions", body=dict(CHAT), cast_to=object))


@WAYS("retried by the SDK")
async def retried(c: Any) -> None:
    await settle(c.chat.completions.create(model=f"gpt-4o-fails-once-{id(c)}", messages=MESSAGES))


@WAYS("responses.create")
async def responses(c: Any) -> None:
    assert (await settle(c.responses.create(**ASKED))).usage.input_tokens == 1000


@WAYS("responses.parse")
async def responses_parse(c: Any) -> None:
    assert (await settle(c.responses.parse(**ASKED, text_format=value_type()))).output_parsed.value == 1


@WAYS("responses.create, stream")
async def responses_stream(c: Any) -> None:
    assert len(await items(await settle(c.responses.create(**ASKED, stream=True)))) == 13


@WAYS("responses.stream")
async def responses_helper(c: Any) -> None:
    async with entered(c.responses.stream(**ASKED)) as events:
        assert (await settle(events.get_final_response())).usage.output_tokens == 7


@WAYS("responses.compact")
async def compact(c: Any) -> None:
    answer = await settle(c.responses.compact(model=ASKED["model"], input="hi"))
    assert answer.usage.input_tokens == 1000


@WAYS("conversations.create", records=0)
async def conversations(c: Any) -> None:
    await settle(c.conversations.create())


@WAYS("background, fetched until it is done")
async def background(c: Any) -> None:
    response = await settle(c.responses.create(**ASKED, background=True))
    while response.status in ("queued", "in_progress"):
        response = await settle(c.responses.retrieve(response.id))
    assert response.usage.output_tokens == 7
    await settle(c.responses.retrieve(response.id))


@WAYS("background, its stream taken up again")
async def background_stream(c: Any) -> None:
    events = await settle(c.responses.create(**ASKED, background=True, stream=True))
    begun = await first(events)
    await close(events)
    rest = await settle(c.responses.retrieve(begun.response.id, stream=True, starting_after=0))
    assert (await items(rest))[-1].response.usage.output_tokens == 7


@WAYS("background, cancelled", "unknown")
async def background_cancelled(c: Any) -> None:
    response = await settle(c.responses.create(**ASKED, background=True))
    assert (await settle(c.responses.cancel(response.id))).status == "cancelled"


@WAYS("background, asked for elsewhere")
async def background_elsewhere(c: Any) -> None:
    assert (await settle(c.responses.retrieve("resp_elsewhere"))).usage.output_tokens == 7
    assert (await settle(c.responses.retrieve("resp_elsewhere"))).usage.output_tokens == 7


@WAYS("fetched, but not made in the background", records=0)
async def stored(c: Any) -> None:
    assert (await settle(c.responses.retrieve("resp_stored"))).usage.output_tokens == 7


@WAYS("batch: results", records=BATCH_LINES)
async def batch_results(c: Any) -> None:
    content = await settle(c.files.content("file-results"))
    assert content.text.count("custom_id") == BATCH_LINES + 1


@WAYS("batch: results read twice", records=BATCH_LINES)
async def batch_results_twice(c: Any) -> None:
    for _ in range(2):
        async with entered(c.files.with_streaming_response.content("file-results")) as answer:
            assert len(await items(answer.iter_bytes(7))) > 100


@WAYS("batch: results, compressed", records=BATCH_LINES)
async def batch_results_gzipped(c: Any) -> None:
    content = await settle(c.files.content("file-results-gzip"))
    assert content.text.count("custom_id") == BATCH_LINES + 1


@WAYS("a file of something else", records=0)
async def other_file(c: Any) -> None:
    assert (await settle(c.files.content("file-other"))).text.count("custom_id") == 2
    assert (await settle(c.files.content("file-image"))).content[:4] == b"\x89PNG"


@WAYS("embeddings", "input")
async def embeddings(c: Any) -> None:
    answer = await settle(c.embeddings.create(model="text-embedding-3-small", input="hi"))
    assert len(answer.data[0].embedding) == 2


@WAYS("images")
async def images(c: Any) -> None:
    assert (await settle(c.images.generate(model="gpt-image-1", prompt="a cat"))).data


@WAYS("images.edit")
async def images_edit(c: Any) -> None:
    image = ("a.png", io.BytesIO(b"\x89PNG" + b"\x00" * AUDIO))
    assert (await settle(c.images.edit(model="gpt-image-1", image=image, prompt="a cat"))).data


@WAYS("images, stream")
async def images_stream(c: Any) -> None:
    events = await settle(c.images.generate(model="gpt-image-1", prompt="a cat", stream=True))
    assert (await items(events))[-1].usage.output_tokens == 7


@WAYS("transcription")
async def transcription(c: Any) -> None:
    file = ("a.wav", io.BytesIO(b"\x00" * AUDIO))
    answer = await settle(c.audio.transcriptions.create(model="gpt-4o-transcribe", file=file))
    assert answer.text == "hello"


@WAYS("transcription, stream")
async def transcription_stream(c: Any) -> None:
    file = ("a.wav", io.BytesIO(b"\x00" * AUDIO))
    asked: Any = {"model": "gpt-4o-transcribe", "file": file, "stream": True}
    events = await settle(c.audio.transcriptions.create(**asked))
    assert (await items(events))[-1].usage.output_tokens == 7


@WAYS("speech", "unknown")
async def speech(c: Any) -> None:
    asked: Any = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": "hello"}
    answer = await settle(c.audio.speech.create(**asked))
    assert len(answer.content) == 100


@WAYS("speech, stream of events")
async def speech_events(c: Any) -> None:
    asked: Any = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": "hello", "stream_format": "sse"}
    async with entered(c.audio.speech.with_streaming_response.create(**asked)) as answer:
        assert b"speech.audio.done" in b"".join(await items(answer.iter_bytes()))


@WAYS("decisions")
async def decisions(c: Any) -> None:
    asked: Any = {"model": "gpt-6-luna", "input": "hi", "questions": []}
    assert (await settle(c.decisions.create(**asked))).usage.input_tokens == 1000


@WAYS("stream closed early", "unknown")
async def closed_early(c: Any) -> None:
    chunks = await settle(c.chat.completions.create(**CHAT, stream=True))
    await first(chunks)
    await close(chunks)


@WAYS("stream dropped", "unknown")
async def dropped(c: Any) -> None:
    chunks = await settle(c.chat.completions.create(**CHAT, stream=True))
    await first(chunks)
    del chunks
    gc.collect()


@WAYS("stream never read", "unknown")
async def never_read(c: Any) -> None:
    await settle(c.chat.completions.create(**CHAT, stream=True))
    gc.collect()


@WAYS("exception of the caller's in a stream", "unknown")
async def failing(c: Any) -> None:
    await fail_reading(await settle(c.chat.completions.create(**CHAT, stream=True)))


@WAYS("timeout in a stream", "unknown")
async def timed_out(c: Any) -> None:
    asked: Any = {"model": "gpt-4o-stalls", "messages": MESSAGES, "timeout": 1}
    chunks = await settle(c.chat.completions.create(**asked, stream=True))
    await time_out(chunks)


@WAYS("connection lost in a stream", "unknown")
async def lost(c: Any) -> None:
    asked: Any = {"model": "gpt-4o-drops", "messages": MESSAGES}
    chunks = await settle(c.chat.completions.create(**asked, stream=True))
    with pytest.raises(Exception, match=r"(?i)connection|closed|peer"):
        await items(chunks)


@WAYS("responses.create, stream closed early", "unknown")
async def responses_closed(c: Any) -> None:
    events = await settle(c.responses.create(**ASKED, stream=True))
    await first(events)
    await close(events)


@WAYS("stream cancelled", "unknown", modes=("async",))
async def cancelled(c: Any) -> None:
    asked: Any = {"model": "gpt-4o-stalls", "messages": MESSAGES}
    await cancel_reading(await c.chat.completions.create(**asked, stream=True))


@WAYS("20 at once", records=20)
async def twenty(c: Any) -> None:
    if is_async(c):
        await asyncio.gather(*(stream(c) for _ in range(20)))
        return
    chats = [asyncio.to_thread(c.chat.completions.create, **CHAT) for _ in range(20)]
    assert {answer.usage.prompt_tokens for answer in await asyncio.gather(*chats)} == {1000}


@WAYS("error", records=0)
async def error(c: Any) -> None:
    with pytest.raises(Exception, match="this is bad"):
        await settle(c.chat.completions.create(model="bad-request", messages=MESSAGES, stream=True))
    with pytest.raises(Exception, match="no"):
        await settle(
            c.with_options(max_retries=0).chat.completions.create(model="always-fails", messages=MESSAGES)
        )
