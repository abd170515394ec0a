"""What the proxy takes, and what it says to a request that it does not pass on."""

from __future__ import annotations

import msgspec

__all__ = ["ProxyLimits", "RefusedError"]

_MIB = 1024 * 1024


class ProxyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Calls at a time, bytes of a request's body, and seconds.

    `max_body_bytes` is for a body that is read before it is passed on: that of a call that is recorded, but
    for forms. Any other is passed on as it comes and may have `max_upload_bytes`. `body_timeout` is for a
    body that is read, or between two parts of one that is passed on; `connect_timeout` for the way to the
    provider, `answer_timeout` until its answer begins, `idle_timeout` between two parts of the answer, and
    `call_timeout` for all together.
    """

    max_calls: int = 1000
    max_body_bytes: int = 32 * _MIB
    max_upload_bytes: int = 1024 * _MIB
    body_timeout: float = 60.0
    connect_timeout: float = 10.0
    answer_timeout: float = 600.0
    idle_timeout: float = 600.0
    call_timeout: float = 3600.0


class RefusedError(Exception):
    """A request that is not passed on, or whose provider did not answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def body(self) -> bytes:
        """The answer, in the form that SDKs of OpenAI and of Anthropic read."""
        error = {"type": "proxy_error", "code": self.code, "message": str(self)}
        return msgspec.json.encode({"type": "error", "error": error})
