"""A transport that answers by a script, in place of a server."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.status import OVERLOADED, RpcError, StatusCode
from llm_cost_ops.transports.http.errors import code_of_status

__all__ = ["Delay", "Fault", "Received", "ScriptedTransport"]


class Fault(NamedTuple):
    """A failure to script: an HTTP status, or a StatusCode, or "network" for no answer at all.

    `sent=False` says that the request never left, so that it can't have been applied. `headers` are
    those of the answer, `error_code` is the server's own code. `times` repeats it.

        [Fault(503, times=2), answer]      fail twice with 503, then answer
        [Fault("network"), answer]         break the connection once
        [Fault(429, retry_after=2.5), answer]
    """

    what: int | StatusCode | str
    message: str = "scripted fault"
    times: int = 1
    retry_after: float | None = None
    sent: bool = True
    headers: Mapping[str, str] | None = None
    error_code: str = ""

    def error(self, context: CallContext) -> RpcError:
        """The error that a transport would raise."""
        safe = context.method.idempotency.value == 1
        if self.what == "network":
            return RpcError(
                StatusCode.UNAVAILABLE,
                self.message,
                origin="network",
                maybe_applied=self.sent and not safe,
                retry_after=self.retry_after,
            )
        status = None
        if isinstance(self.what, StatusCode):
            code = self.what
        else:
            status = int(self.what)
            code = code_of_status(status)
        return RpcError(
            code,
            self.message,
            http_status=status,
            retry_after=self.retry_after,
            maybe_applied=self.sent
            and not safe
            and self.error_code != OVERLOADED
            and (status is None or status >= 500),
            error_code=self.error_code,
            metadata=Metadata(self.headers or {}),
        )


class Delay(NamedTuple):
    """Something to answer after some seconds of the client's runtime, but not after its deadline."""

    seconds: float
    step: Any


class Received(NamedTuple):
    """One request as it arrived; `headers` and `attempt` are those of that moment."""

    method: str
    request: Any
    context: CallContext
    headers: Metadata
    attempt: int
    idempotency_key: str


class ScriptedTransport:
    """Answers calls by a script, one step a call, and keeps what it received in `calls`.

    A step is a response message; what the method returns (it is put in its response); an exception,
    RpcError or any other, to raise; a Fault; a Delay; or a function of (request, context), sync or
    async, that returns a step or None for an empty response. The last step is repeated with
    `forever=True`; otherwise a call beyond the script is an AssertionError. Safe to share between
    threads and tasks.

    A call whose answer is a stream takes a step that is a list: its messages, and among them the
    faults and delays that come between.

        [[first, second, Fault("network")], [third]]     break after two messages, then go on

    Any other step is a stream of that alone. The requests of a stream are all taken, into the list that
    is the call's request, before the answer begins; by Fault(..., sent=False) none is.
    """

    def __init__(self, script: Iterable[object] = (), *, forever: bool = False) -> None:
        self._script = _steps(script)
        self._forever = forever
        self._last: Any = None
        self._lock = threading.Lock()
        self.calls: list[Received] = []
        self.closed = 0

    @property
    def requests(self) -> list[Any]:
        """The request messages, in the order in which they came."""
        return [call.request for call in self.calls]

    async def unary_unary(self, request: object, context: CallContext) -> object:
        """Answer as the script says."""
        step = self._received(request, context)
        return self._response(await self._resolved(step, request, context), context)

    async def unary_stream(self, request: object, context: CallContext) -> AsyncGenerator[object, None]:
        """Answer with a stream, as the script says."""
        answer = await self._resolved(self._received(request, context), request, context)
        for step in answer if isinstance(answer, list) else [answer]:
            yield self._response(await self._resolved(step, request, context), context)

    async def stream_stream(
        self, requests: AsyncIterable[object], context: CallContext
    ) -> AsyncGenerator[object, None]:
        """Take all requests, and answer with a stream, as the script says."""
        taken: list[Any] = []
        step = self._received(taken, context)
        if not isinstance(step, Fault) or step.sent:
            async for request in requests:
                taken.append(request)  # noqa: PERF401  # kept where the iterable breaks
        answer = await self._resolved(step, taken, context)
        for part in answer if isinstance(answer, list) else [answer]:
            yield self._response(await self._resolved(part, taken, context), context)

    async def aclose(self) -> None:
        """Count that it was closed."""
        self.closed += 1

    def _received(self, request: object, context: CallContext) -> object:
        headers, key = context.metadata.copy(), context.idempotency_key
        received = Received(context.method.name, request, context, headers, context.attempt, key)
        with self._lock:
            self.calls.append(received)
            step = self._next(context)
        context.check_deadline()
        return step

    def _next(self, context: CallContext) -> object:
        for step in self._script:
            self._last = step
            return step
        if self._forever:
            return self._last
        raise AssertionError(f"call {len(self.calls)}, {context.method.name}, is not in the script")

    async def _resolved(self, step: object, request: object, context: CallContext) -> object:
        """The answer that a step comes to. What it says to raise is raised."""
        while True:
            if isinstance(step, Delay):
                step = await self._later(step, context)
            elif isinstance(step, Fault):
                raise step.error(context)
            elif isinstance(step, BaseException):
                raise step
            elif callable(step) and not isinstance(step, msgspec.Struct):
                step = step(request, context)
                step = await step if hasattr(step, "__await__") else step
                step = context.method.response.type() if step is None else step
            else:
                return step

    async def _later(self, delay: Delay, context: CallContext) -> object:
        remaining = context.remaining()
        late = remaining is not None and delay.seconds >= remaining
        await context.runtime.sleep(remaining if late and remaining is not None else delay.seconds)
        context.check_deadline(maybe_applied=context.method.idempotency.value != 1)
        return delay.step

    def _response(self, answer: object, context: CallContext) -> object:
        context.response_status = 200
        if context.response_metadata is None:
            context.response_metadata = Metadata()
        response = context.method.response.type
        if isinstance(answer, response) or context.method.unwrap is None:
            return answer
        name = context.method.unwrap
        many = isinstance(getattr(response(), name), list) and not isinstance(answer, list)
        return response(**{name: [answer] if many else answer})


def _steps(script: Iterable[object]) -> Iterator[object]:
    for step in script:
        yield from [step] * (step.times if isinstance(step, Fault) else 1)
