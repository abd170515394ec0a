"""Answers in a Content-Encoding, whole and broken off: the hook and the proxy read what came of them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import httpx2
import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.instrumentation.http import _decompressed as as_libraries_do
from llm_cost_ops.proxy.passing import _decompressed as as_the_proxy_does
from llm_cost_ops.types import UsageQuality, UsageRecord
from tests.unit.instrumentation.matrix import records_of

URL = "https://api.openai.com/v1/chat/completions"
CHAT = {"model": "gpt-4o", "messages": [], "stream": True, "stream_options": {"include_usage": True}}
_CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-4o-2024-11-20"}
USAGE = {"prompt_tokens": 1000, "completion_tokens": 7, "total_tokens": 1007}
EVENTS = [
    *(json.dumps({**_CHUNK, "choices": [{"index": 0, "delta": {"content": f"ä{n}"}}]}) for n in range(9)),
    json.dumps({**_CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
    json.dumps({**_CHUNK, "choices": [], "usage": USAGE}),
    "[DONE]",
]


def _zlib(bits: int) -> Callable[[list[bytes]], list[bytes]]:
    def flushed(parts: list[bytes]) -> list[bytes]:
        packer = zlib.compressobj(wbits=bits)
        return [*(packer.compress(each) + packer.flush(zlib.Z_SYNC_FLUSH) for each in parts), packer.flush()]

    return flushed


def _zstd(parts: list[bytes]) -> list[bytes]:
    zstandard = pytest.importorskip("zstandard")
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    flush = partial(packer.flush, zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return [*(packer.compress(each) + flush() for each in parts), packer.flush()]


def _brotli(parts: list[bytes]) -> list[bytes]:
    packer = pytest.importorskip("brotli").Compressor()
    return [*(packer.process(each) + packer.flush() for each in parts), packer.finish()]


ENCODINGS = {"identity": list, "gzip": _zlib(31), "deflate": _zlib(15), "zstd": _zstd, "br": _brotli}


def sent_parts(encoding: str) -> list[bytes]:
    """What a server sends that flushes after each event, and the end of the encoding last."""
    return ENCODINGS[encoding]([f"data: {event}\n\n".encode() for event in EVENTS])


class Body(httpx.SyncByteStream, httpx2.SyncByteStream):
    """Parts of a stream; then the server goes away, if it does."""

    def __init__(self, parts: list[bytes], *, breaks: bool = False) -> None:
        self._parts = parts
        self._breaks = breaks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._parts
        if self._breaks:
            raise ConnectionError("the server went away")


def recorded(client: CostOpsClient, library: Any, encoding: str, body: Body, most: int) -> UsageRecord:
    """The record of a call whose answer is read until it breaks, or so many events were seen."""
    if encoding not in library._decoders.SUPPORTED_DECODERS:
        pytest.skip(f"{library.__name__} needs a library more for it")
    headers = {"content-type": "text/event-stream", "content-encoding": encoding}
    transport = library.MockTransport(lambda _: library.Response(200, headers=headers, stream=body))
    with (
        client.instrument(library.Client(transport=transport)) as sdk,
        suppress(ConnectionError),
        sdk.stream("POST", URL, json=CHAT) as answer,
    ):
        seen = ""
        for text in answer.iter_text():
            seen += text
            if seen.count("\n\n") >= most:
                break
    [record] = records_of(client)
    return record


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_who_leaves_at_the_last_event_leaves_before_the_end_of_its_encoding(
    client: CostOpsClient, library: Any, encoding: str
) -> None:
    record = recorded(client, library, encoding, Body(sent_parts(encoding)), len(EVENTS))
    assert (record.input_tokens, record.output_tokens) == (1000, 7)
    assert record.quality != UsageQuality.UNKNOWN


@pytest.mark.parametrize("breaks", [True, False])
@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_broke_off_is_recorded_by_what_came(
    client: CostOpsClient, library: Any, encoding: str, breaks: bool
) -> None:
    body = Body(sent_parts(encoding)[: 5 if breaks else None], breaks=breaks)
    record = recorded(client, library, encoding, body, 5)
    assert record.quality == UsageQuality.UNKNOWN
    assert (record.model_id, record.requested_model_id) == ("gpt-4o-2024-11-20", "gpt-4o")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_the_proxy_reads_up_to_where_it_broke_off(encoding: str) -> None:
    parts = sent_parts(encoding)
    whole = "".join(f"data: {event}\n\n" for event in EVENTS).encode()
    assert as_the_proxy_does(encoding, b"".join(parts)) == whole
    assert as_the_proxy_does(encoding, b"".join(parts[:-1])) == whole
    assert as_the_proxy_does(encoding, b"".join(parts[:5])) == b"\n\n".join([*whole.split(b"\n\n")[:5], b""])


def test_what_is_no_encoding_after_a_while_is_read_up_to_there() -> None:
    text = json.dumps([*range(20_000)]).encode()
    packed = gzip.compress(text, 1)
    read = as_libraries_do(httpx.Response, "gzip", packed[: len(packed) // 2] + bytes(9000))
    assert len(read) > len(text) // 3
    assert text.startswith(read[: len(text) // 3])
    assert as_libraries_do(httpx.Response, "gzip", b"nonsense") == b""
