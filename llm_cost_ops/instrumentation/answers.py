"""Reading an answer as its bytes pass: the same for the HTTP clients of SDKs and for the recording proxy."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from llm_cost_ops.instrumentation.calls import Call, Options
from llm_cost_ops.instrumentation.events import EventReader
from llm_cost_ops.instrumentation.providers import TAKE_STREAM_OPTIONS

__all__ = ["MAX_BODY", "MAX_FORM", "Watch", "events_of", "may_ask", "report", "watch", "with_usage"]

MAX_BODY = 64 * 1024 * 1024
"""Of a body that passes bit by bit so much is kept to be read, in bytes."""

MAX_FORM = 16 * 1024
"""Of a form that is sent so much is kept, in bytes: its fields come before its files."""

_BINARY = re.compile("(?:audio|video|image)/|application/octet-stream")

_log = logging.getLogger("llm_cost_ops.instrumentation")
_said: set[str] = set()


class Watch:
    """Sees the bytes of an answer as they pass. Never raises."""

    def __init__(self, call: Call, reader: EventReader | None, body: bytearray | None) -> None:
        self._call = call
        self._reader = reader
        self._body = body
        self._broken = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes, and give what may pass."""
        if self._broken:
            return data
        try:
            self._call.first_byte()
            if self._reader is not None:
                return self._reader.feed(data)
            if self._body is not None and len(self._body) + len(data) <= MAX_BODY:
                self._body += data
        except Exception:  # noqa: BLE001  # the bytes pass, whatever is wrong with us
            self._broken = True
            report("a stream can't be read")
        return data

    def rest(self) -> bytes:
        """What was held back, once no more bytes come."""
        try:
            return b"" if self._reader is None else self._reader.rest()
        except Exception:  # noqa: BLE001  # as above
            report("a stream can't be read")
            return b""

    def end(self) -> bytes:
        """The answer ended as it should; what was held back."""
        rest = self.rest()
        self.finish(finished=True)
        return rest

    def finish(self, *, finished: bool = False) -> None:
        """Nothing more will come."""
        try:
            self._call.finish(finished=finished)
        except Exception:  # noqa: BLE001  # as above
            report("a call can't be recorded")


def watch(
    call: Call, kind: str, encoding: str, decompressed: Callable[[str, bytes], bytes], *, hide: bool
) -> Watch:
    """What sees an answer pass that has this Content-Type and Content-Encoding.

    `decompressed` gives a body as it was before its encoding. With `hide` the chunk with the usage does not
    pass, see EventReader.
    """
    is_stream = kind.startswith("text/event-stream")
    reader = body = None
    if is_stream and encoding in ("", "identity"):
        reader = EventReader(hide=hide)
        call.events = reader.events
    elif not _BINARY.match(kind):
        body = bytearray()
        decoded = functools.partial(_decoded, decompressed, encoding, body)
        if is_stream:
            call.events = lambda: events_of(decoded())
        else:
            call.body = decoded
    call.begin_stream()
    return Watch(call, reader, body)


def _decoded(decompressed: Callable[[str, bytes], bytes], encoding: str, body: bytearray) -> bytes:
    plain = encoding in ("", "identity")
    return bytes(body) if plain else decompressed(encoding, bytes(body))


def events_of(content: bytes) -> list[bytes]:
    """The events of a whole body that can matter for its usage."""
    reader = EventReader()
    reader.feed(content)
    reader.rest()
    return reader.events()


def may_ask(options: Options, provider: str, host: str, refusing: Collection[str]) -> bool:
    """Whether a host's chat streams are asked for their usage; `refusing` are hosts that did not take it."""
    if options.stream_usage != "auto":
        return bool(options.stream_usage)
    return provider in TAKE_STREAM_OPTIONS and host not in refusing


def with_usage(content: bytes) -> bytes | None:
    """The body of a chat request that asks for usage too; None where it is no stream, or asks by itself."""
    if b'"stream"' not in content:
        return None
    fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    if bytes(fields.get("stream", msgspec.Raw(b"false"))) != b"true":
        return None
    stated: Any = msgspec.json.decode(fields.get("stream_options", msgspec.Raw(b"null"))) or {}
    if not isinstance(stated, dict) or stated.get("include_usage"):
        return None
    options = {**stated, "include_usage": True}
    return msgspec.json.encode({**fields, "stream_options": msgspec.Raw(msgspec.json.encode(options))})


def report(trouble: str) -> None:
    """Log a kind of trouble once."""
    if trouble not in _said:
        _said.add(trouble)
        _log.warning("%s", trouble, exc_info=True)
