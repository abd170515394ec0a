"""A line for each call that was answered: as text, or as JSON for what collects logs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

import msgspec

from llm_cost_ops.server.calls import ServedCall

__all__ = ["ACCESS_LOGS", "AccessLog"]

ACCESS_LOGS = ("off", "text", "json")

# Callers choose their request ids: one that is a key keeps the key's public part.
_KEY = re.compile(r"(lco_[a-z2-7]{8})_[a-z2-7]{8,}", re.IGNORECASE)


class AccessLog:
    """Writes calls to a stream, standard error by default, in `form` text or json.

    A line has the time (UTC), transport, rpc_method, status, duration_ms, bytes_received, bytes_sent, key_id
    (of the API key, "-" without one) and request_id. What a caller sent, other than the request id, is not in
    it: no path, no header, no body.
    """

    def __init__(self, form: str, stream: TextIO | None = None) -> None:
        self._write: Callable[[str], object] = (stream or sys.stderr).write
        self._flush = (stream or sys.stderr).flush
        self._json = form == "json"

    def __call__(self, call: ServedCall) -> None:
        """Write the line of a call. If the stream can't be written to, only the line is lost."""
        facts: dict[str, str | float] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "transport": call.transport,
            "rpc_method": call.method,
            "status": call.status,
            "duration_ms": round(call.seconds * 1000, 3),
            "bytes_received": call.bytes_received,
            "bytes_sent": call.bytes_sent,
            "key_id": call.key_id or "-",
            "request_id": _KEY.sub(r"\1", call.request_id),
        }
        if self._json:
            line = msgspec.json.encode(facts).decode()
        else:
            line = " ".join(f"{name}={value}" for name, value in facts.items())
        try:
            self._write(f"{line}\n")
            self._flush()
        except (OSError, ValueError):
            return
