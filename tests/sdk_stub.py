"""A provider of LLMs on loopback, for the tests of instrumented SDKs.

It answers in the forms of OpenAI, Anthropic, Google, Mistral, Cohere and Bedrock. Every answer has an id of
its own and states `INPUT` and `OUTPUT` tokens. The model's name says how it behaves: `_Handler.do_POST`.
"""

from __future__ import annotations

import gzip
import json
import struct
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, ClassVar

INPUT, OUTPUT = 1000, 7


class Stub(ThreadingHTTPServer):
    """What was asked of it is in `requests`: the path and the body of each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, Any]] = []
        self.numbers = count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_stub() -> Iterator[Stub]:
    stub = Stub()
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Stub
    failed: ClassVar[set[str]] = set()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("transfer-encoding") == "chunked":
            raw = self._read_chunked()
        try:
            body = json.loads(raw)
        except ValueError:
            body = {"form": raw}
        self.server.requests.append((self.path, body))
        model = str(body.get("model", ""))
        if "always-fails" in model:
            self._json({"error": {"message": "no", "type": "server_error"}}, status=500)
        elif "fails-once" in model and model not in self.failed:
            self.failed.add(model)
            self._json({"error": {"message": "try again"}}, status=500)
        elif "refuses-options" in model and "stream_options" in body:
            self._json({"error": {"message": "unknown field: stream_options"}}, status=400)
        elif "bad-request" in model:
            self._json({"error": {"message": "this is bad"}}, status=400)
        else:
            self._answer(self.path.partition("?")[0], body, model, next(self.server.numbers))

    def _answer(self, path: str, body: dict[str, Any], model: str, number: int) -> None:
        if path.endswith("/audio/speech"):
            self._bytes(b"\x00" * 100, "audio/mpeg")
            return
        if path.endswith(("-stream", "/converse", "/invoke")):
            self._bedrock(path, f"{number:024d}")
            return
        if path.endswith(":streamGenerateContent"):
            self._events(_gemini_events(path, f"{number:024d}"), path)
            return
        for end, (answer, events) in _APIS.items():
            if path.endswith(end):
                if body.get("stream"):
                    self._events(events(body, model, f"{number:024d}"), model)
                else:
                    self._json(answer(model, f"{number:024d}"), compressed="gzip" in model)
                return
        self._json({"error": {"message": "no such path"}}, status=404)

    def _bedrock(self, path: str, number: str) -> None:
        usage = {"inputTokens": INPUT, "outputTokens": OUTPUT, "totalTokens": INPUT + OUTPUT}
        headers = {"x-amzn-requestid": number}
        if not path.endswith("-stream"):
            counts = {"input": INPUT, "output": OUTPUT}
            if path.endswith("/invoke"):
                headers |= {f"x-amzn-bedrock-{side}-token-count": str(n) for side, n in counts.items()}
            message = {"role": "assistant", "content": [{"text": "hello"}]}
            answer = {"output": {"message": message}, "stopReason": "end_turn", "usage": usage}
            self._bytes(json.dumps(answer).encode(), "application/json", headers=headers)
            return
        if path.endswith("/converse-stream"):
            delta = {"contentBlockIndex": 0, "delta": {"text": "hello"}}
            events = [("contentBlockDelta", delta)] * 4 + [("metadata", {"usage": usage})]
        else:
            metrics = {"inputTokenCount": INPUT, "outputTokenCount": OUTPUT}
            parts: list[Any] = [{"type": "ping"}] * 4 + [{"amazon-bedrock-invocationMetrics": metrics}]
            events = [("chunk", {"bytes": b64encode(json.dumps(part).encode()).decode()}) for part in parts]
        body = b"".join(_aws_event(name, json.dumps(fields).encode()) for name, fields in events)
        self._bytes(body, "application/vnd.amazon.eventstream", headers=headers)

    def _json(self, payload: Any, *, status: int = 200, compressed: bool = False) -> None:
        body = json.dumps(payload).encode()
        self._bytes(gzip.compress(body) if compressed else body, "application/json", status, compressed)

    def _bytes(
        self,
        body: bytes,
        kind: str,
        status: int = 200,
        compressed: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", kind)
        self.send_header("x-stub", "yes")
        if compressed:
            self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _events(self, events: Iterator[tuple[str, Any]], model: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("x-stub", "yes")
        compressed = "gzip" in model
        if compressed:
            self.send_header("content-encoding", "gzip")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        blocks = []
        for name, data in events:
            text = data if isinstance(data, str) else json.dumps(data)
            blocks.append((f"event: {name}\n" if name else "") + f"data: {text}\n\n")
        try:
            if compressed:
                self._chunk(gzip.compress("".join(blocks).encode()))
            for index, block in enumerate([] if compressed else blocks):
                if "drops" in model and index == 3:
                    self.close_connection = True
                    return
                if "slow" in model:
                    time.sleep(0.05)
                raw = block.encode()
                # Events do not end where chunks do.
                self._chunk(raw[: len(raw) // 2])
                self._chunk(raw[len(raw) // 2 :])
            self._chunk(b"")
        except OSError:
            self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _read_chunked(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


def _chat(model: str, number: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": '{"value": 1}'}
    return {
        "id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1_760_000_000, "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT},
    }  # fmt: skip


def _chat_events(body: dict[str, Any], model: str, number: str) -> Iterator[tuple[str, Any]]:
    whole = _chat(model, number)
    head = {**whole, "object": "chat.completion.chunk"}
    usage = head.pop("usage")
    asked = (body.get("stream_options") or {}).get("include_usage")
    extra = {"usage": None} if asked else {}
    for word in ("one", "two", "three", "four"):
        yield (
            "",
            {**head, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}], **extra},
        )
    yield "", {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], **extra}
    if asked:
        yield "", {**head, "choices": [], "usage": usage}
    yield "", "[DONE]"


def _response(model: str, number: str) -> dict[str, Any]:
    text = {"type": "output_text", "text": '{"value": 1}', "annotations": []}
    return {
        "id": f"resp_{number}", "object": "response", "created_at": 1_760_000_000, "model": model,
        "status": "completed", "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "output": [
            {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
        ],
        "usage": {
            "input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT,
            "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
        },
    }  # fmt: skip


def _response_events(body: dict[str, Any], model: str, number: str) -> Iterator[tuple[str, Any]]:
    whole = _response(model, number)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield "response.created", {"type": "response.created", "response": begun, "sequence_number": 0}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    place = {"output_index": 0, "content_index": 0, "item_id": "msg_1", "logprobs": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    yield "", {"type": "response.output_item.added", "output_index": 0, "item": item, "sequence_number": 1}
    yield "", {"type": "response.content_part.added", **place, "part": part, "sequence_number": 2}
    for step in range(3, 12):
        kind = "response.output_text.delta"
        yield kind, {"type": kind, **place, "delta": "x", "sequence_number": step}
    yield "", {"type": "response.completed", "response": whole, "sequence_number": 12}


def _embeddings(model: str, number: str) -> dict[str, Any]:
    vector = {"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}
    usage = {"prompt_tokens": INPUT, "total_tokens": INPUT}
    return {"object": "list", "model": model, "data": [vector], "usage": usage}


def _images(model: str, number: str) -> dict[str, Any]:
    usage = {"input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    return {"created": 1_760_000_000, "data": [{"b64_json": "AAAA"}], "usage": usage}


def _transcription(model: str, number: str) -> dict[str, Any]:
    usage = {"type": "tokens", "input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    return {"text": "hello", "usage": usage}


def _message(model: str, number: str) -> dict[str, Any]:
    return {
        "id": f"msg_{number}", "type": "message", "role": "assistant", "model": model,
        "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": INPUT, "output_tokens": OUTPUT},
    }  # fmt: skip


def _message_events(body: dict[str, Any], model: str, number: str) -> Iterator[tuple[str, Any]]:
    usage = {"input_tokens": INPUT, "output_tokens": 1}
    start = {**_message(model, number), "content": [], "stop_reason": None, "usage": usage}
    yield "message_start", {"type": "message_start", "message": start}
    block = {"type": "text", "text": ""}
    yield "content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}
    for _ in range(12):
        delta = {"type": "text_delta", "text": "hello"}
        yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
    yield "content_block_stop", {"type": "content_block_stop", "index": 0}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    yield "message_delta", {"type": "message_delta", "delta": end, "usage": {"output_tokens": OUTPUT}}
    yield "message_stop", {"type": "message_stop"}


def _mistral_events(body: dict[str, Any], model: str, number: str) -> Iterator[tuple[str, Any]]:
    """Mistral states usage in the last chunk that has choices, unasked."""
    events = list(_chat_events({}, model, number))
    usage = _chat(model, number)["usage"]
    yield from events[:-2]
    yield "", {**events[-2][1], "usage": usage}
    yield events[-1]


def _cohere(model: str, number: str) -> dict[str, Any]:
    counts = {"input_tokens": INPUT, "output_tokens": OUTPUT}
    message = {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}
    return {
        "id": number, "finish_reason": "COMPLETE", "message": message,
        "usage": {"billed_units": counts, "tokens": counts},
    }  # fmt: skip


def _cohere_events(body: dict[str, Any], model: str, number: str) -> Iterator[tuple[str, Any]]:
    yield "", {"type": "message-start", "id": number, "delta": {"message": {"role": "assistant"}}}
    for _ in range(5):
        delta = {"message": {"content": {"text": "hello"}}}
        yield "", {"type": "content-delta", "index": 0, "delta": delta}
    end = {"finish_reason": "COMPLETE", "usage": _cohere(model, number)["usage"]}
    yield "", {"type": "message-end", "delta": end}


def _gemini(model: str, number: str) -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": "hello"}]}
    return {
        "responseId": number, "modelVersion": "gemini-2.5-flash",
        "candidates": [{"index": 0, "content": content, "finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": INPUT, "candidatesTokenCount": OUTPUT, "totalTokenCount": INPUT + OUTPUT,
        },
    }  # fmt: skip


def _gemini_events(path: str, number: str) -> Iterator[tuple[str, Any]]:
    """Gemini states usage in each chunk, as far as it is."""
    whole = _gemini("", number)
    content = whole["candidates"][0]["content"]
    for step in range(1, 6):
        usage = {"promptTokenCount": INPUT, "candidatesTokenCount": step, "totalTokenCount": INPUT + step}
        yield "", {**whole, "candidates": [{"index": 0, "content": content}], "usageMetadata": usage}
    yield "", whole


def _aws_event(name: str, payload: bytes) -> bytes:
    """A message of vnd.amazon.eventstream."""
    fields = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        struct.pack(f">B{len(key)}sBH{len(value)}s", len(key), key.encode(), 7, len(value), value.encode())
        for key, value in fields.items()
    )
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))


def _none(body: dict[str, Any], model: str, number: str) -> Iterator[tuple[str, Any]]:
    yield "", "[DONE]"


_APIS: dict[str, tuple[Any, Any]] = {
    "/mistral/v1/chat/completions": (_chat, _mistral_events),
    "/chat/completions": (_chat, _chat_events),
    "/responses": (_response, _response_events),
    "/embeddings": (_embeddings, _none),
    "/images/generations": (_images, _none),
    "/audio/transcriptions": (_transcription, _none),
    "/v1/messages": (_message, _message_events),
    "/v2/chat": (_cohere, _cohere_events),
    ":generateContent": (_gemini, _none),
}
