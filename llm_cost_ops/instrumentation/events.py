"""The events of a stream, read as their bytes pass: server-sent events, and the frames of AWS."""

from __future__ import annotations

import re
import struct
from collections import deque

import msgspec

__all__ = ["EventReader", "FrameReader", "data_of"]

_BOUNDARY = re.compile(rb"\r\n\r\n|\n\r?\n|\r\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DATA = re.compile(rb"(?m)^data: ?([^\n]*)")
_USAGE = re.compile(rb'"usage(?:Metadata)?"\s*:\s*\{')
_END = re.compile(
    rb'\s*(?:\[DONE\]|\{\s*"type"\s*:\s*"(?:message_stop|message-end|conversation\.response\.done|response\.(?:completed|incomplete|failed))")'
)
# The last piece of one of several answers, which may come long before the end of the stream.
_REASON = re.compile(rb'"finish_?[rR]eason"\s*:\s*"[^"]')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')

# Of a long stream so many events are kept: the first, those that state usage, those with the end of an
# answer (a request has at most 128), with tools that ran or with searches, and the last.
_FIRST, _STATING, _FACTS, _LAST = 4, 64, 256, 8
# What a frame of AWS may hold, and an event, in bytes: of a body without an end of one no more is held.
_MAX_FRAME = 24 * 1024 * 1024
_MAX_EVENT = 64 * 1024 * 1024


class _KeptEvents:
    """The events of a stream that can matter for its usage."""

    __slots__ = ("_facts", "_first", "_last", "_number", "_stating")

    def __init__(self) -> None:
        self._number = 0
        self._first: list[tuple[int, bytes]] = []
        self._stating: deque[tuple[int, bytes]] = deque(maxlen=_STATING)
        self._facts: deque[tuple[int, bytes]] = deque(maxlen=_FACTS)
        self._last: deque[tuple[int, bytes]] = deque(maxlen=_LAST)

    def keep(self, data: bytes) -> bool:
        """Keep an event where it matters; whether it states usage."""
        self._number += 1
        states = b'"usage' in data and _USAGE.search(data) is not None
        if self._number <= _FIRST:
            self._first.append((self._number, data))
        elif _has_facts(data):
            self._facts.append((self._number, data))
        elif states:
            self._stating.append((self._number, data))
        else:
            self._last.append((self._number, data))
        return states

    def events(self) -> list[bytes]:
        """The data of the events that were kept, in their order."""
        groups = (self._first, self._facts, self._stating, self._last)
        kept = {number: data for group in groups for number, data in group}
        return [kept[number] for number in sorted(kept)]


def _has_facts(data: bytes) -> bool:
    """Whether an event says of an answer why it ended, or what beside the tokens is billed for it."""
    return _REASON.search(data) is not None or b'"executed_tools"' in data or b'"groundingMetadata"' in data


class EventReader(_KeptEvents):
    """Splits a body into events and keeps those that can matter for its usage.

    With `hide` the chunk of a chat stream that has no choices and states usage does not pass: it is the one
    that the caller did not ask for. Bytes of an event then pass once the event is complete. `ended` says
    whether an event was complete after which none counts. From an event that is too long on, nothing is read.
    """

    __slots__ = ("_hide", "_over", "_pending", "_scanned", "ended")

    def __init__(self, *, hide: bool = False) -> None:
        super().__init__()
        self._hide = hide
        self._over = False
        self.ended = False
        self._pending = bytearray()
        self._scanned = 0

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the body, and give those that may pass now."""
        if self._over:
            return data
        pending = self._pending
        if (
            not pending
            and data.endswith(b"\n\n")
            and data.find(b"\n\n") == len(data) - 2
            and b"\r" not in data
        ):
            # One event and nothing else, as they mostly come.
            hidden = self._take(data)
            return b"" if hidden else data
        pending += data
        passing: list[bytes] = []
        start = 0
        position = max(0, self._scanned - 3)
        may_end = b"\n" in data or b"\r" in data
        while may_end and (found := _BOUNDARY.search(pending, position)):
            block = bytes(pending[start : found.end()])
            if not self._take(block):
                passing.append(block)
            start = position = found.end()
        del pending[:start]
        self._scanned = len(pending)
        if self._scanned > _MAX_EVENT:
            self._over = True
            passing.append(bytes(pending))
            pending.clear()
        return b"".join(passing) if self._hide else data

    def rest(self) -> bytes:
        """At the end of the body: what did not pass yet."""
        block = bytes(self._pending)
        self._pending.clear()
        hidden = self._take(block) if block else False
        return block if self._hide and not hidden else b""

    def _take(self, block: bytes) -> bool:
        """Keep an event where it matters; whether it is to be hidden."""
        if not self._number:
            block = block.removeprefix(_BYTE_ORDER_MARK)
        data = data_of(block)
        if not data:
            return False
        self.ended = self.ended or _END.match(data) is not None
        states = self.keep(data)
        return self._hide and states and _NO_CHOICES.search(data) is not None


class _Chunk(msgspec.Struct):
    """The payload of a frame of Bedrock's InvokeModelWithResponseStream: an event in base64."""

    event: bytes = msgspec.field(default=b"", name="bytes")


# Made while the module is loaded, by one thread: see wire.json.decoder_of.
_chunks = msgspec.json.Decoder(_Chunk)


class FrameReader(_KeptEvents):
    """Reads the frames of application/vnd.amazon.eventstream, in which Bedrock sends a model's events."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        super().__init__()
        self._pending = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the body, and give them back. ValueError where they are no frames."""
        pending = self._pending
        pending += data
        while len(pending) >= 12:
            # Lengths of the whole and of the headers, and a checksum of both; a checksum ends the frame.
            total, headers = struct.unpack_from(">II", pending)
            if not headers + 16 <= total <= _MAX_FRAME:
                raise ValueError("not a frame of an event stream")
            if len(pending) < total:
                break
            payload = bytes(pending[12 + headers : total - 4])
            del pending[:total]
            if chunk := _chunks.decode(payload).event:
                self.keep(chunk)
        return data

    def rest(self) -> bytes:
        """At the end of the body: nothing is held back."""
        return b""


def data_of(block: bytes) -> bytes:
    """The data of an event: its lines that begin with `data:`, joined."""
    if block.startswith(b"data: ") and block.endswith(b"\n\n") and block.find(b"\n") == len(block) - 2:
        return block[6:-2]
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return b"\n".join(_DATA.findall(block))
