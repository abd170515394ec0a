"""What is fetched later than it was asked for: answers made in the background, and the results of batches."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING
from weakref import WeakSet

import msgspec

from llm_cost_ops.normalizers.tolerant import decode_tolerantly
from llm_cost_ops.rpc.forks import forget_in_children, living

if TYPE_CHECKING:
    from llm_cost_ops.instrumentation.calls import Call

__all__ = ["Background", "ResultLines"]

MAX_WAITING = 10_000
"""So many calls of a client may run in the background; the oldest of more are of unknown usage."""

MAX_LINE = 64 * 1024 * 1024
"""A longer line of a batch's results is not read, in bytes."""

_log = logging.getLogger("llm_cost_ops.instrumentation")

_UNDER_WAY = frozenset({"queued", "in_progress"})


class _State(msgspec.Struct):
    """The state of a response."""

    id: str = ""
    status: str = ""
    background: bool | None = None


# Made while the module is loaded, by one thread: see wire.json.decoder_of.
_states = msgspec.json.Decoder(_State)


class _Event(msgspec.Struct):
    """An event of a stream that tells it."""

    response: _State | None = None
    interaction: _State | None = None


_events = msgspec.json.Decoder(_Event)


class Background:
    """The calls of a client that are answered before they are done, until an answer says how they ended."""

    def __init__(self) -> None:
        self._waiting: dict[str, Call] = {}
        forget_in_children(self)

    def forget(self) -> None:
        """In a forked child: drop the calls of the parent, which records them itself."""
        waiting, self._waiting = self._waiting, {}
        for call in waiting.values():
            call.drop()

    def asked(self, call: Call, *, finished: bool) -> None:
        """Take the answer to a request for work in the background."""
        state = _state_of(call)
        if state is None or state.status not in _UNDER_WAY:
            call.finish(finished=finished)
            return
        call.wait()
        _watch_exit(self)
        self._waiting[state.id] = call
        if len(self._waiting) > MAX_WAITING:
            self._waiting.pop(next(iter(self._waiting))).finish(finished=False)

    def fetched(self, call: Call, *, finished: bool) -> None:
        """Take a later answer about such work, and record the call when it has ended.

        It is also recorded where the work was asked for elsewhere, if its id makes a key: once then,
        however often and wherever it is fetched.
        """
        state = _state_of(call)
        if state is None or state.status in _UNDER_WAY or not state.status:
            call.drop()
            return
        waiting = self._waiting.pop(state.id, None)
        if waiting is not None:
            # A recording proxy sees no answers to such questions.
            waiting.left_to_proxy = False
            waiting.answer_later(call)
        elif state.background and call.unique:
            call.latency_ms = None
            call.finish(finished=finished)
        else:
            call.drop()

    def abandon(self) -> None:
        """Record the calls under way with unknown usage, as nobody will fetch their answers."""
        while self._waiting:
            self._waiting.popitem()[1].finish(finished=False)


_backgrounds: WeakSet[Background] = WeakSet()


def _watch_exit(background: Background) -> None:
    """Record the calls under way when the process ends, before its recorders close."""
    if not _backgrounds:
        atexit.unregister(_abandon_all)
        atexit.register(_abandon_all)
    _backgrounds.add(background)


def _abandon_all() -> None:
    for background in living(_backgrounds):
        background.abandon()


def _state_of(call: Call) -> _State | None:
    """The state of the work by an answer; None where that can't be read."""
    try:
        if call.events is None:
            state = decode_tolerantly(_states, (call.body or bytes)())
            return state if state.id else None
        states = [_state_in(data) for data in call.events()]
        return next((state for state in reversed(states) if state is not None and state.id), None)
    except (ValueError, RecursionError):
        return None


def _state_in(data: bytes) -> _State | None:
    try:
        event = decode_tolerantly(_events, data)
    except (ValueError, RecursionError):
        return None
    return event.response or event.interaction


class _Answer(msgspec.Struct):
    status_code: int = 200
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Result(msgspec.Struct):
    type: str = ""


class _Line(msgspec.Struct):
    """A line of a batch's results: OpenAI's, Mistral's and Groq's has a response, Anthropic's a result."""

    custom_id: str
    id: str = ""
    response: _Answer | None = None
    result: _Result | None = None

    @property
    def is_billed(self) -> bool:
        if self.result is not None:
            return self.result.type == "succeeded"
        answer = self.response
        return answer is not None and answer.status_code < 300 and bytes(memoryview(answer.body)[:1]) == b"{"


_lines = msgspec.json.Decoder(_Line)


class ResultLines:
    """Cuts the results of a batch into lines as they pass; each request that succeeded is one call.

    `begin` makes a call, `place` names the file. A file of anything else is looked at no further than it
    takes to know that.
    """

    def __init__(self, begin: Callable[[], Call], place: str) -> None:
        self._begin = begin
        self._place = place
        self._pending = bytearray()
        self._any = self._over = self._warned = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the file, and give them back."""
        if self._over:
            return data
        pending = self._pending
        if b"\n" not in data:
            pending += data
        else:
            first, *lines = data.split(b"\n")
            self._take(bytes(pending) + first)
            pending[:] = lines.pop()
            for line in lines:
                self._take(line)
        if len(pending) > MAX_LINE:
            _log.warning("results of a batch are not read from a line over %d bytes on", MAX_LINE)
            self._over = True
        if self._over or (pending and not self._any and not pending.startswith(b"{")):
            self._over = True
            pending.clear()
        return data

    def rest(self) -> bytes:
        """The file ended; nothing is held back."""
        if not self._over:
            self._take(bytes(self._pending))
            self._pending.clear()
        return b""

    def _take(self, line: bytes) -> None:
        if self._over or not line.strip():
            return
        try:
            found = decode_tolerantly(_lines, line)
        except (ValueError, RecursionError):
            if self._any and not self._warned:
                self._warned = True
                _log.warning("lines of a batch's results can't be read, and are not recorded")
            self._over = not self._any
            return
        self._any = True
        if found.is_billed:
            call = self._begin()
            call.body = lambda: line
            call.key = f"{call.provider}:{found.id}" if call.unique and found.id else self._key_of(found)
            call.finish(finished=True)

    def _key_of(self, line: _Line) -> str:
        """A key for a line that has no id, or one that is not known to be unique."""
        return "batch:" + sha256(f"{self._place}\n{line.custom_id}".encode()).hexdigest()[:40]
