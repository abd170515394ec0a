"""A provider of LLMs on loopback, for the tests of instrumented SDKs.

It answers in the forms of OpenAI, Anthropic, Google, Mistral, Cohere and Bedrock. Every answer has an id of
its own and states `INPUT` and `OUTPUT` tokens. The model's name says how it behaves: `_Handler.do_POST`.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, ClassVar
from urllib.parse import unquote

from tests.served import serving

INPUT, OUTPUT = 1000, 7
BATCH_LINES = 3
"""Of the requests in the stub's batches so many succeeded."""

_MODEL_IN_PATH = re.compile(r"/(?:models?|deployments)/([^/]+?)(?:/|:\w+$|:\w+\?|$)")
_FORM_FIELD = re.compile(rb'name="(\w+)"\r\n\r\n([^\r\n]+)\r\n')


class Stub(ThreadingHTTPServer):
    """What was asked of it is in `requests`: the path and the body of each."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, Any]] = []
        self.numbers = count(1)
        self.polls: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def events_of(api: str) -> list[tuple[str, Any]]:
    """The events of a stream, by the end of its path: the name and the data of each."""
    return list(_APIS[api][1]({"stream_options": {"include_usage": True}}, "gpt-4o", "1"))


def running_stub() -> AbstractContextManager[Stub]:
    return serving(Stub())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Stub
    failed: ClassVar[set[str]] = set()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        last = path.rpartition("/")[2]
        self.server.requests.append((self.path, {}))
        if "/files/" in path and last == "content":
            self._file(path.split("/")[-2])
        elif path.endswith("/results"):
            lines = _anthropic_lines()
            self._bytes(
                gzip.compress(lines) if "gzip" in path else lines,
                "application/x-jsonl",
                compressed="gzip" in path,
            )
        elif "/responses/" in path:
            whole = _response("gpt-4o", last.removeprefix("resp_")) | {"background": last != "resp_stored"}
            if "stream=true" in self.path:
                self._events(_response_events({"background": True}, "gpt-4o", last.removeprefix("resp_")), "")
            else:
                self._json(whole if self._is_done(last) else _under_way(whole))
        elif "/interactions/" in path:
            whole = _interaction("gemini-2.5-flash", last)
            self._json(whole if self._is_done(last) else {**whole, "status": "in_progress", "usage": None})
        elif "/messages/batches/" in path:
            self._json({"id": last, "results_url": f"{self.server.url}{path}/results"})
        elif "/batches/" in path:
            self._json(_gemini_batch())
        else:
            self._json({"error": {"message": "no such path"}}, status=404)

    def _is_done(self, name: str) -> bool:
        """Whether what is made in the background is there: the second time that is asked."""
        self.server.polls[name] = self.server.polls.get(name, 0) + 1
        return self.server.polls[name] > 1 or name in ("resp_elsewhere", "resp_stored")

    def _file(self, name: str) -> None:
        content = {"file-image": b"\x89PNG" + b"\n" * 100, "file-other": _openai_requests()}.get(name)
        content = _openai_lines() if content is None else content
        if "gzip" in name:
            self._bytes(gzip.compress(content), "application/octet-stream", compressed=True)
        else:
            self._bytes(content, "application/octet-stream")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("transfer-encoding") == "chunked":
            raw = self._read_chunked()
        try:
            body = json.loads(raw)
        except ValueError:
            body = {"form": raw}
        self.server.requests.append((self.path, body))
        model = unquote(str(body.get("model", "")) or "".join(_MODEL_IN_PATH.findall(self.path)[:1]))
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
        if isinstance(body.get("form"), bytes):
            body = _fields_of(body["form"])
            model = body.get("model", "")
        if path.endswith("/cancel"):
            name = path.split("/")[-2]
            self._json({**_under_way(_response("gpt-4o", name.removeprefix("resp_"))), "status": "cancelled"})
            return
        if path.endswith("/audio/speech"):
            if body.get("stream_format") == "sse":
                self._events(_speech_events(), model)
            else:
                self._bytes(b"\x00" * 100, "audio/mpeg")
            return
        if path.endswith(("-stream", "/converse", "/invoke")):
            self._bedrock(path, model, f"{number:024d}")
            return
        if path.endswith(":streamGenerateContent"):
            self._events(_gemini_events(path, f"{number:024d}"), path)
            return
        if path.endswith(":streamRawPredict"):
            self._events(_message_events(body, model, f"{number:024d}"), model)
            return
        if body.get("background") and not body.get("stream"):
            if path.endswith("/interactions"):
                whole = {**_interaction(model, f"{number:024d}"), "status": "in_progress", "usage": None}
                self._json(whole)
            else:
                self._json(_under_way(_response(model, f"{number:024d}")))
            return
        for end, (answer, events) in _APIS.items():
            if path.endswith(end):
                if body.get("stream"):
                    self._events(events(body, model, f"{number:024d}"), model)
                else:
                    self._json(answer(model, f"{number:024d}"), compressed="gzip" in model)
                return
        self._json({"error": {"message": "no such path"}}, status=404)

    def _bedrock(self, path: str, model: str, number: str) -> None:
        usage = {"inputTokens": INPUT, "outputTokens": OUTPUT, "totalTokens": INPUT + OUTPUT}
        headers = {"x-amzn-requestid": number}
        if not path.endswith("-stream"):
            counts = {"input": INPUT, "output": OUTPUT}
            if path.endswith("/invoke"):
                headers |= {f"x-amzn-bedrock-{side}-token-count": str(n) for side, n in counts.items()}
                answer = _message("claude-stub", f"bdrk_{number}")
            else:
                message = {"role": "assistant", "content": [{"text": "hello"}]}
                answer = {"output": {"message": message}, "stopReason": "end_turn", "usage": usage}
            text, packed = json.dumps(answer).encode(), "gzip" in model
            text = gzip.compress(text) if packed else text
            self._bytes(text, "application/json", compressed=packed, headers=headers)
            return
        if path.endswith("/converse-stream"):
            delta = {"contentBlockIndex": 0, "delta": {"text": "hello"}}
            events = [("contentBlockDelta", delta)] * 4 + [("metadata", {"usage": usage})]
        else:
            metrics = {"inputTokenCount": INPUT, "outputTokenCount": OUTPUT}
            parts = [data for _, data in _message_events({}, "claude-stub", f"bdrk_{number}")]
            parts[-1] = {**parts[-1], "amazon-bedrock-invocationMetrics": metrics}
            events = [("chunk", {"bytes": b64encode(json.dumps(part).encode()).decode()}) for part in parts]
        frames = [_aws_event(name, json.dumps(fields).encode()) for name, fields in events]
        if "gzip" in model:
            body = gzip.compress(b"".join(frames))
            self._bytes(body, "application/vnd.amazon.eventstream", compressed=True, headers=headers)
            return
        self._begin_chunks("application/vnd.amazon.eventstream", headers)
        self._chunks(frames, model)

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
        compressed = "gzip" in model
        encoding = {"content-encoding": "gzip"} if compressed else {}
        self._begin_chunks("text/event-stream; charset=utf-8", encoding)
        blocks = []
        for name, data in events:
            text = data if isinstance(data, str) else json.dumps(data)
            blocks.append(((f"event: {name}\n" if name else "") + f"data: {text}\n\n").encode())
        self._chunks([gzip.compress(b"".join(blocks))] if compressed else blocks, model)

    def _begin_chunks(self, kind: str, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "content-type": kind, "x-stub": "yes"}.items():
            self.send_header(name, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _chunks(self, blocks: list[bytes], model: str) -> None:
        try:
            for index, raw in enumerate(blocks):
                if "drops" in model and index == 3:
                    self.close_connection = True
                    return
                if "stalls" in model and index == 2:
                    self.connection.settimeout(10)
                    self.connection.recv(1)  # until the caller goes
                    self.close_connection = True
                    return
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
    whole = _response(model, number) | {"background": bool(body.get("background"))}
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


def _conversation(model: str, number: str) -> dict[str, Any]:
    tools = {"prompt_tokens": INPUT - 400, "connector_tokens": 400, "connectors": {"web_search": 1}}
    usage = {**_chat(model, number)["usage"], **tools}
    output = {"type": "message.output", "model": "mistral-large-latest", "content": "hello"}
    return {"object": "conversation.response", "conversation_id": "c", "outputs": [output], "usage": usage}


def _conversation_events(body: dict[str, Any], model: str, number: str) -> Iterator[tuple[str, Any]]:
    whole, delta, done = _conversation(model, number), "message.output.delta", "conversation.response.done"
    yield from [(delta, {**whole["outputs"][0], "type": delta, "id": "msg_1"})] * 3
    yield done, {"type": done, "usage": whole["usage"]}


def _embeddings(model: str, number: str) -> dict[str, Any]:
    vector = {"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}
    usage = {"prompt_tokens": INPUT, "total_tokens": INPUT}
    return {"object": "list", "id": number, "model": model, "data": [vector], "usage": usage}


def _images(model: str, number: str) -> dict[str, Any]:
    usage = {"input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    return {"created": 1_760_000_000, "data": [{"b64_json": "AAAA"}], "usage": usage}


def _transcription(model: str, number: str) -> dict[str, Any]:
    usage = {"type": "tokens", "input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    return {"text": "hello", "usage": usage}


def _message(model: str, number: str) -> dict[str, Any]:
    return {
        "id": f"msg_{number}", "type": "message", "role": "assistant", "model": model or "claude-stub",
        "content": [{"type": "text", "text": '{"value": 1, "x": "hello"}'}],
        "stop_reason": "end_turn", "stop_sequence": None,
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


def _under_way(response: dict[str, Any]) -> dict[str, Any]:
    """A response that is made in the background."""
    return {**response, "status": "queued", "background": True, "output": [], "usage": None}


def _text_completion(model: str, number: str) -> dict[str, Any]:
    choices = [{"index": 0, "text": "x", "finish_reason": "stop", "logprobs": None}]
    return {**_chat(model, number), "object": "text_completion", "choices": choices}


def _decision(model: str, number: str) -> dict[str, Any]:
    usage = _response(model, number)["usage"]
    return {"object": "decision", "model": model, "answers": [], "usage": usage}


def _image_events(body: dict[str, Any], model: str, number: str) -> Iterator[tuple[str, Any]]:
    place = {"b64_json": "AAAA", "created_at": 1, "background": "auto", "output_format": "png"}
    place |= {"quality": "low", "size": "1024x1024"}
    kind = "image_generation.partial_image"
    yield kind, {"type": kind, **place, "partial_image_index": 0}
    usage = _images(model, number)["usage"] | {
        "input_tokens_details": {"text_tokens": INPUT, "image_tokens": 0}
    }
    yield "image_generation.completed", {"type": "image_generation.completed", **place, "usage": usage}


def _transcript_events(body: dict[str, Any], model: str, number: str) -> Iterator[tuple[str, Any]]:
    for _ in range(12):
        yield "transcript.text.delta", {"type": "transcript.text.delta", "delta": "x"}
    usage = _transcription(model, number)["usage"]
    yield "transcript.text.done", {"type": "transcript.text.done", "text": "x", "usage": usage}


def _speech_events() -> Iterator[tuple[str, Any]]:
    for _ in range(12):
        yield "speech.audio.delta", {"type": "speech.audio.delta", "audio": "AAAA"}
    usage = {"input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    yield "speech.audio.done", {"type": "speech.audio.done", "usage": usage}


def _embed(model: str, number: str) -> dict[str, Any]:
    meta = {"billed_units": {"input_tokens": INPUT}}
    answer = {"id": number, "embeddings": {"float": [[0.1, 0.2]]}, "texts": ["hi"], "meta": meta}
    return {**answer, "response_type": "embeddings_by_type"}


def _rerank(model: str, number: str) -> dict[str, Any]:
    results = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]
    return {"id": number, "results": results, "meta": {"billed_units": {"search_units": 1}}}


def _ocr(model: str, number: str) -> dict[str, Any]:
    return {"pages": [], "model": model, "usage_info": {"pages_processed": 3, "doc_size_bytes": 10}}


def _interaction(model: str, number: str) -> dict[str, Any]:
    usage = {"total_input_tokens": INPUT, "total_output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    return {
        "id": number, "object": "interaction", "model": model, "status": "completed", "usage": usage,
        "created": "2026-11-01T00:00:00Z", "updated": "2026-11-01T00:00:00Z",
        "steps": [{"type": "model_output", "content": [{"type": "text", "text": "hello"}]}],
    }  # fmt: skip


def _interaction_events(body: dict[str, Any], model: str, number: str) -> Iterator[tuple[str, Any]]:
    whole = _interaction(model, number)
    begun = {**whole, "status": "in_progress", "usage": None}
    yield "", {"event_type": "interaction.created", "interaction": begun}
    delta = {"type": "text", "text": "hello"}
    yield "", {"event_type": "step.delta", "index": 0, "delta": delta}
    yield "", {"event_type": "interaction.completed", "interaction": whole}


def _gemini_embedding(model: str, number: str) -> dict[str, Any]:
    return {"embeddings": [{"values": [0.1, 0.2]}], "embedding": {"values": [0.1, 0.2]}}


def _gemini_batch() -> dict[str, Any]:
    answers: list[Any] = [{"response": _gemini("", f"batch{number:020d}")} for number in range(BATCH_LINES)]
    answers.insert(1, {"error": {"code": 3, "message": "no"}})
    metadata = {
        "state": "BATCH_STATE_SUCCEEDED", "model": "models/gemini-2.5-flash",
        "output": {"inlinedResponses": {"inlinedResponses": answers}},
    }  # fmt: skip
    return {"name": "batches/stub", "metadata": metadata, "done": True}


def _openai_lines() -> bytes:
    """The results of a batch: chats, an embedding, which has no id, and a request that failed."""
    bodies: list[tuple[int, Any]] = [(200, _chat("gpt-4o", f"batch{n:019d}")) for n in range(BATCH_LINES)]
    bodies.insert(1, (400, {"error": {"message": "no"}}))
    lines = [
        {
            "id": f"batch_req_{n}", "custom_id": f"c-{n}", "error": None,
            "response": {"status_code": status, "request_id": f"r{n}", "body": body},
        }
        for n, (status, body) in enumerate(bodies)
    ]  # fmt: skip
    return b"\n".join(json.dumps(line).encode() for line in lines)


def _openai_requests() -> bytes:
    """The file that a batch is made of."""
    line = {"custom_id": "c-0", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o"}}
    return (json.dumps(line) + "\n").encode() * 2


def _anthropic_lines() -> bytes:
    results: list[Any] = [
        {"type": "succeeded", "message": _message("claude-stub", f"batch{n:019d}")}
        for n in range(BATCH_LINES)
    ]
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    results[1:1] = [{"type": "errored", "error": error}, {"type": "expired"}]
    lines = [{"custom_id": f"c-{n}", "result": result} for n, result in enumerate(results)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _fields_of(form: bytes) -> dict[str, Any]:
    """The fields of a form that are no files."""
    found = {name.decode(): value.decode() for name, value in _FORM_FIELD.findall(form)}
    return {**found, "stream": found.get("stream") == "true"}


def _count(model: str, number: str) -> dict[str, Any]:
    return {"input_tokens": 5, "totalTokens": 5}


def _none(body: dict[str, Any], model: str, number: str) -> Iterator[tuple[str, Any]]:
    yield "", "[DONE]"


_APIS: dict[str, tuple[Any, Any]] = {
    "/mistral/v1/chat/completions": (_chat, _mistral_events),
    "/fim/completions": (_chat, _mistral_events),
    "/v1/ocr": (_ocr, _none),
    "/chat/completions": (_chat, _chat_events),
    "/completions": (_text_completion, _none),
    "/decisions": (_decision, _none),
    "/interactions": (_interaction, _interaction_events),
    "/responses": (_response, _response_events),
    "/responses/compact": (lambda *asked: {**_response(*asked), "model": None}, _none),
    "/conversations": (_conversation, _conversation_events),
    "/conv_1": (_conversation, _conversation_events),
    "/embeddings": (_embeddings, _none),
    "/images/generations": (_images, _image_events),
    "/images/edits": (_images, _image_events),
    "/audio/transcriptions": (_transcription, _transcript_events),
    "/v1/messages": (_message, _message_events),
    "/count_tokens": (_count, _none),
    "/count-tokens:rawPredict": (_count, _none),
    ":rawPredict": (_message, _message_events),
    ":countTokens": (_count, _none),
    "/v2/chat": (_cohere, _cohere_events),
    "/v2/embed": (_embed, _none),
    "/v2/rerank": (_rerank, _none),
    ":batchEmbedContents": (_gemini_embedding, _none),
    ":embedContent": (_gemini_embedding, _none),
    ":generateContent": (_gemini, _none),
}
