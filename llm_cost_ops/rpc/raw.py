"""What a call brought beside its message, for callers who want to look."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.metadata import Metadata

__all__ = ["RawResponse"]

T = TypeVar("T")


class RawResponse(Generic[T]):
    """An answer with all that came with it.

    `parsed`, or `data`, is what the method returns without `with_raw_response`; `message` the whole
    response message. `status` is the HTTP status, or the one that HTTP would have; `headers` what
    the server sent beside its answer, gRPC's trailers among them. `attempts` counts how often the
    call was sent, 0 when the cache answered; `waited` is the seconds before attempts.
    """

    __slots__ = ("attempts", "headers", "message", "parsed", "request_id", "status", "waited")

    def __init__(self, message: Any, parsed: T, context: CallContext) -> None:
        self.message = message
        self.parsed = parsed
        self.status = context.response_status
        self.headers = context.response_metadata or Metadata()
        self.attempts = context.attempt
        self.waited = context.waited
        self.request_id = context.request_id

    @property
    def data(self) -> T:
        """The same as `parsed`."""
        return self.parsed

    def __repr__(self) -> str:
        return (
            f"RawResponse(status={self.status}, attempts={self.attempts}, request_id={self.request_id!r}, "
            f"headers={self.headers!r}, parsed={self.parsed!r})"
        )
