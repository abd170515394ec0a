"""What a call carries beside its message."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from llm_cost_ops.rpc.ids import uuid7
from llm_cost_ops.rpc.metadata import Metadata
from llm_cost_ops.rpc.method import MethodDescriptor
from llm_cost_ops.rpc.runtime import Runtime, utc_now
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["CallContext", "Route"]


class Route(msgspec.Struct):
    """Where a transport with several servers took a call.

    `server` is the URL of the last one, `tried` the numbers of those that were asked. `elsewhere` says that
    the server failed while others work: another attempt need not wait. `connect_timeout` is for a connect, in
    seconds; None is until the call's deadline.
    """

    server: str = ""
    tried: set[int] = msgspec.field(default_factory=set)
    elsewhere: bool = False
    connect_timeout: float | None = None


class CallContext(msgspec.Struct):
    """One logical call, from the resource to the transport, or from the server's listener to the servicer.

    `deadline` is a point on `runtime.monotonic()` that queueing, waits, back-off and every attempt
    share; None means none. `attempt` counts from 1, `refusals` those of the attempts before it that the
    server refused since it had too many calls. The transport leaves what the peer sent beside its
    answer in `response_metadata` and `response_status`. `principal` is who calls, on a server.
    `waited` adds up the seconds spent in the rate limit and before retries; `retry` is a RetryConfig
    for this call alone, False for no retries, None for what the client does; `authorized` says that
    the credentials in `metadata` are the client's own. `moment` is what `now` answers.
    `admitted` says that the rate limit has let the next attempt through already. `batch` is the request id of
    the batch that a submit rode in, "" where it was sent alone. `route` is None where there is one server.
    """

    method: MethodDescriptor[Any, Any]
    runtime: Runtime
    metadata: Metadata
    deadline: float | None = None
    idempotency_key: str = ""
    attempt: int = 1
    request_id: str = ""
    response_metadata: Metadata | None = None
    response_status: int = 0
    principal: Any = None
    waited: float = 0.0
    retry: Any = None
    authorized: bool = False
    moment: datetime | None = None
    refusals: int = 0
    admitted: bool = False
    batch: str = ""
    route: Route | None = None

    def now(self) -> datetime:
        """The moment at which the call is dealt with, in UTC: that of the first question."""
        if self.moment is None:
            self.moment = utc_now(self.runtime)
        return self.moment

    def identify(self) -> str:
        """Make an id for the call, keep it as its request id, and return it to be its key as well."""
        self.request_id = made = uuid7()
        return made

    def remaining(self) -> float | None:
        """Seconds until the deadline, negative once it has passed; None without one."""
        return None if self.deadline is None else self.deadline - self.runtime.monotonic()

    def check_deadline(self, *, maybe_applied: bool = False) -> None:
        """Raise DEADLINE_EXCEEDED once the deadline has passed."""
        remaining = self.remaining()
        if remaining is not None and remaining <= 0:
            raise RpcError(
                StatusCode.DEADLINE_EXCEEDED,
                f"the deadline of {self.method.name} passed",
                origin="client",
                maybe_applied=maybe_applied,
            )
