"""uvicorn's HTTP/1.1 protocol with the time limits that it lacks."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llm_cost_ops.server.limits import ConnectionLimits

__all__ = ["limited_protocol"]


def limited_protocol(limits: ConnectionLimits) -> type[H11Protocol]:
    """A protocol class for uvicorn that keeps the limits."""

    class LimitedProtocol(H11Protocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._reading, self._writing):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._writing = self.loop.call_later(limits.write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()

        def _watch(self) -> None:
            state = self.conn.their_state
            limit = 0.0
            if state is h11.IDLE and (self.cycle is None or self.timeout_keep_alive_task is None):
                limit = limits.header_timeout
            elif state is h11.SEND_BODY and self.cycle is not None and self.cycle.response_complete:
                limit = limits.linger_timeout
            if not limit and self._reading is not None:
                self._reading.cancel()
                self._reading = None
            elif limit and self._reading is None:
                # Not set anew by each byte: it is a limit for the whole.
                self._reading = self.loop.call_later(limit, self.transport.close)

    return LimitedProtocol
