"""Reading an answer as its bytes pass: the same for the HTTP clients of SDKs and for the recording proxy."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from llm_cost_ops.instrumentation.events import EventReader, FrameReader
from llm_cost_ops.instrumentation.providers import TAKE_STREAM_OPTIONS

if TYPE_CHECKING:
    from llm_cost_ops.instrumentation.calls import Call, Options

__all__ = [
    "MAX_BODY",
    "MAX_FORM",
    "Watch",
    "events_of",
    "may_ask",
    "reader_of",
    "report",
    "watch",
    "watch_lines",
    "with_usage",
]

MAX_BODY = 64 * 1024 * 1024
"""Of a body that passes bit by bit so much is kept to be read, in bytes."""

MAX_FORM = 16 * 1024
"""Of a form that is sent so much is kept, in bytes: its fields come before its files."""

_FRAMES = "application/vnd.amazon.eventstream"
_BINARY = re.compile("(?:audio|video|image)/|application/octet-stream", re.IGNORECASE)

_log = logging.getLogger("llm_cost_ops.instrumentation")
_said: set[str] = set()


class Reader(Protocol):
    """Reads the bytes of an answer."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes, and give what may pass."""

    def rest(self) -> bytes:
        """The bytes that were held back, at the end."""


class Watch:
    """Sees the bytes of an answer as they pass, and completes what is to be recorded of it. Never raises."""

    def __init__(
        self,
        call: Call | None,
        complete: Callable[..., None],
        reader: Reader | None = None,
        body: bytearray | None = None,
    ) -> None:
        self._call = call
        self._complete = complete
        self._reader = reader
        self._body = body
        self._broken = self._ended = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes, and give what may pass."""
        if self._broken:
            return data
        try:
            if self._call is not None:
                self._call.first_byte()
            if isinstance(self._reader, EventReader):
                return self._read(self._reader, data)
            if self._reader is not None:
                return self._reader.feed(data)
            if self._body is not None and len(self._body) + len(data) <= MAX_BODY:
                self._body += data
        except Exception:  # noqa: BLE001  # the bytes pass, whatever is wrong with us
            self._broken = True
            report("a stream can't be read")
        return data

    def _read(self, reader: Reader, data: bytes) -> bytes:
        passing = reader.feed(data)
        if isinstance(reader, EventReader) and reader.ended:
            # Who reads the stream may stop at this event: it passes when the call is recorded.
            passing = passing + reader.rest()
            self._reader = None
            self.finish(finished=True)
        return passing

    def rest(self) -> bytes:
        """The bytes that were held back, at the end."""
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
        """The answer ended, or was broken off: complete the record."""
        if self._ended:
            return
        self._ended = True
        try:
            self._complete(finished=finished)
        except Exception:  # noqa: BLE001  # as above
            report("a call can't be recorded")


def reader_of(kind: str, *, hide: bool = False) -> EventReader | FrameReader | None:
    """What reads a stream of this Content-Type; None where it is no stream."""
    named = kind.lower()
    if named.startswith("text/event-stream"):
        return EventReader(hide=hide)
    return FrameReader() if named.startswith(_FRAMES) else None


def watch(
    call: Call,
    kind: str,
    encoding: str,
    decompressed: Callable[[str, bytes], bytes],
    *,
    hide: bool,
    complete: Callable[..., None] | None = None,
) -> Watch:
    """What sees an answer pass that has this Content-Type and Content-Encoding.

    `decompressed` gives a body as it was before its encoding. With `hide` the chunk with the usage does not
    pass, see EventReader. `complete(finished=...)` is called once at the end, the call's `finish` when it is
    not given.
    """
    complete = complete or call.finish
    reader = reader_of(kind, hide=hide)
    body = None
    if reader is not None and encoding in ("", "identity"):
        call.events = reader.events
    elif reader is not None or not _BINARY.match(kind):
        body = bytearray()
        decoded = functools.partial(_decoded, decompressed, encoding, body)
        if reader is not None:
            kept, reader = type(reader), None
            call.events = lambda: events_of(decoded(), kept)
        else:
            call.body = decoded
    call.begin_stream()
    return Watch(call, complete, reader, body)


def watch_lines(lines: Reader, encoding: str, decompressed: Callable[[str, bytes], bytes]) -> Watch:
    """The Watch of a file of lines, each of which is one call."""
    if encoding in ("", "identity"):
        return Watch(None, _nothing, lines)
    body = bytearray()

    def complete(*, finished: bool) -> None:
        lines.feed(_decoded(decompressed, encoding, body))
        if finished:
            lines.rest()
        body.clear()

    return Watch(None, complete, body=body)


def _nothing(*, finished: bool) -> None:
    """Nothing is left to be done at the end of an answer."""


def _decoded(decompressed: Callable[[str, bytes], bytes], encoding: str, body: bytearray) -> bytes:
    plain = encoding in ("", "identity")
    return bytes(body) if plain else decompressed(encoding, bytes(body))


def events_of(content: bytes, kind: type[EventReader | FrameReader] = EventReader) -> list[bytes]:
    """The events of a whole body that can matter for its usage."""
    reader = kind()
    reader.feed(content)
    reader.rest()
    return reader.events()


def may_ask(options: Options, provider: str, host: str, refusing: Collection[str]) -> bool:
    """Whether a host's chat streams are asked for their usage; `refusing` are hosts that did not take it."""
    if options.stream_usage != "auto":
        return bool(options.stream_usage)
    return provider in TAKE_STREAM_OPTIONS and host not in refusing


def with_usage(content: bytes) -> bytes | None:
    """The body of a chat request that asks for usage too; None where it is no stream, or asks by itself.

    None too for a body that a strict decoder does not take: it is sent as it is.
    """
    if b'"stream"' not in content:
        return None
    try:
        fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        if bytes(fields.get("stream", msgspec.Raw(b"false"))) != b"true":
            return None
        stated: Any = msgspec.json.decode(fields.get("stream_options", msgspec.Raw(b"null"))) or {}
    except (ValueError, RecursionError):
        return None
    if not isinstance(stated, dict) or stated.get("include_usage"):
        return None
    options = {**stated, "include_usage": True}
    return msgspec.json.encode({**fields, "stream_options": msgspec.Raw(msgspec.json.encode(options))})


def report(trouble: str) -> None:
    """Log a kind of trouble once."""
    if trouble not in _said:
        _said.add(trouble)
        _log.warning("%s", trouble, exc_info=True)
