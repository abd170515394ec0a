"""What a listener reports of each call that it answered, for metrics and the access log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.service.access.tenancy import actor_of

__all__ = [
    "CallObserver",
    "Message",
    "OpenCalls",
    "Receive",
    "Scope",
    "Send",
    "ServedCall",
    "Traffic",
    "watched",
]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ServedCall(NamedTuple):
    """One call that was answered.

    `transport` is http or grpc. `method` is that of the service, such as
    "llm_cost_ops.v1.UsageService.SubmitUsage"; "pages" for the dashboard, the reference and the metrics, and
    "other" for what is none of these: a path of the caller's may hold anything, and is not told. `status` is
    the HTTP status, 499 when the client went away before it, or the name of gRPC's. `key_id` is the id of
    the API key, "" without one.
    """

    transport: str
    method: str
    status: str
    seconds: float
    request_id: str
    key_id: str
    bytes_received: int
    bytes_sent: int


CallObserver = Callable[[ServedCall], None]
"""Gets each call after its answer. It is called in the event loop, and may not raise."""


class OpenCalls:
    """Counts the gRPC calls in flight; a call ends when grpcio has sent its status.

    That is after its handler returned; a server that stops in between cuts the answer off. How long it takes
    is the caller's to say, who may not read: `working` counts handlers that run.
    """

    def __init__(self) -> None:
        self.count = 0
        self.working = 0

    def enter(self, grpc_context: Any) -> None:
        """Count a call from now until it is over."""
        self.count += 1
        grpc_context.add_done_callback(self._over)

    def _over(self, _: object) -> None:
        self.count -= 1


class Traffic:
    """The bytes of a call's bodies, and the status of its answer."""

    __slots__ = ("received", "sent", "status")

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0
        self.status = ""

    def http_call(
        self, context: CallContext | None, request_id: str, seconds: float, *, pages: bool
    ) -> ServedCall:
        """The report of a request over HTTP; `context` is None for one that reached no method."""
        method = "pages" if pages else "other" if context is None else context.method.full_name
        key_id = "" if context is None else actor_of(context)
        status = self.status or "499"
        return ServedCall("http", method, status, seconds, request_id, key_id, self.received, self.sent)

    def grpc_call(
        self, context: CallContext | None, method: str, request_id: str, seconds: float
    ) -> ServedCall:
        """The report of a call over gRPC."""
        key_id = "" if context is None else actor_of(context)
        return ServedCall("grpc", method, self.status, seconds, request_id, key_id, self.received, self.sent)


def watched(traffic: Traffic, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """`receive` and `send` of an ASGI request, wrapped to count the bytes and note the status."""

    async def receive_noted() -> Message:
        message = await receive()
        traffic.received += len(message.get("body", b""))
        return message

    async def send_noted(message: Message) -> None:
        if message["type"] == "http.response.start":
            traffic.status = str(message["status"])
        else:
            traffic.sent += len(message.get("body", b""))
        await send(message)

    return receive_noted, send_noted
