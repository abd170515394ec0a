"""Several servers behind one client: which of them gets a call, and where a call goes when one fails.

The servers share a ledger, so that any of them answers any call. Each has a transport of its own, and with
that its own connections and its own pace.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from llm_cost_ops.rpc.backoff import Backoff
from llm_cost_ops.rpc.context import CallContext, Route
from llm_cost_ops.rpc.forks import forget_in_children
from llm_cost_ops.rpc.interceptor import StreamingTransport
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["AVOIDANCE", "MAX_CONNECT", "MAX_TIMEOUTS", "FailoverTransport", "Rotation"]

_log = logging.getLogger("llm_cost_ops.failover")

AVOIDANCE = Backoff(1.0, 30.0)
"""For how long a server is avoided after its first failure, its second in a row, and so on."""

MAX_TIMEOUTS = 3
"""So many deadlines in a row that pass at a server, without an answer between them, are a failure of it."""

MAX_CONNECT = 3.0
"""Seconds for a connect, while there are other servers."""


class Rotation:
    """Servers by their numbers: calls go round those that work, and those that failed are avoided.

    One that failed gets no call until its time is over, then a single one, and no other until that one is
    answered or as much time has passed again; a second failure doubles the time. Where all are avoided, the
    call goes to the one whose time ends first: a call is never refused.

    It knows no clock and does no I/O. Threads and event loops may share it.
    """

    def __init__(self, count: int, first: int = 0) -> None:
        self._lock = threading.RLock()
        self._next = first % count
        self._failures = [0] * count
        self._timeouts = [0] * count
        self._failed_at = [float("-inf")] * count
        self._avoided_until = [float("-inf")] * count

    def pick(self, now: float, tried: Collection[int] = ()) -> int | None:
        """The server for a call, none of those that were tried; None where all were."""
        with self._lock:
            count = len(self._failures)
            order = [(self._next + step) % count for step in range(count)]
            untried = [server for server in order if server not in tried]
            if not untried:
                return None
            due = (server for server in untried if self._avoided_until[server] <= now)
            picked = next(due, None)
            if picked is None:
                picked = min(untried, key=self._avoided_until.__getitem__)
            if self._failures[picked]:
                # Until it is known how this call ends, it stays the only one.
                self._avoid(picked, now)
            self._next = (picked + 1) % count
            return picked

    def answered(self, server: int, began: float) -> bool:
        """A call that began then was answered. True where that ends the time of a server that was avoided."""
        if not self._failures[server] and not self._timeouts[server]:
            return False
        with self._lock:
            self._timeouts[server] = 0
            if not self._failures[server] or began < self._failed_at[server]:
                return False
            self._failures[server] = 0
            self._avoided_until[server] = float("-inf")
            return True

    def failed(self, server: int, began: float, now: float) -> float:
        """A call that began then failed. The seconds for which the server is avoided; 0 where it was already.

        Of many calls that a server takes down with it only the first one counts.
        """
        with self._lock:
            if began < self._failed_at[server]:
                return 0.0
            self._failures[server] += 1
            self._timeouts[server] = 0
            self._failed_at[server] = now
            return self._avoid(server, now)

    def timed_out(self, server: int, began: float, now: float) -> float:
        """The deadline of a call passed, which may be the call's fault. As `failed`, after MAX_TIMEOUTS."""
        with self._lock:
            self._timeouts[server] += 1
            if self._timeouts[server] < MAX_TIMEOUTS and not self._failures[server]:
                return 0.0
        return self.failed(server, began, now)

    def working(self, tried: Collection[int] = ()) -> int:
        """How many servers work, as far as is known, without those that were tried."""
        failures = self._failures
        return sum(1 for server in range(len(failures)) if not failures[server] and server not in tried)

    def forget(self) -> None:
        """Take a lock that nobody holds."""
        self._lock = threading.RLock()

    def _avoid(self, server: int, now: float) -> float:
        seconds = AVOIDANCE.seconds(self._failures[server])
        self._avoided_until[server] = now + seconds
        return seconds


class Server(NamedTuple):
    """One of the servers: its URL, and the way to it."""

    url: str
    transport: StreamingTransport


class _Attempt(NamedTuple):
    server: int
    began: float


class FailoverTransport:
    """Takes each call to one of several servers, the next one of those that work; sync or async as they are.

    A call that can be sent again without harm goes to the next one at once, whatever the client's retries:
    the server that failed did not get it, or it has no side effects. One that may have been executed is for
    the retries to decide, which see in `context.route` that another server can be asked without a wait.
    Each server is asked at most once in an attempt. A stream moves until its first message came through.
    """

    def __init__(self, servers: Sequence[Server], rotation: Rotation) -> None:
        self._servers = tuple(servers)
        self._rotation = rotation
        self.closed = False
        forget_in_children(rotation)

    async def unary_unary(self, request: object, context: CallContext) -> object:
        """Send the request, and return the response or raise RpcError."""
        attempt = self._begin(context)
        while True:
            try:
                response = await self._servers[attempt.server].transport.unary_unary(request, context)
            except RpcError as error:
                attempt = self._next_after(error, attempt, context)
            else:
                self._answered(attempt)
                return response

    def unary_stream(self, request: object, context: CallContext) -> AsyncGenerator[object, None]:
        """Send the request, and yield the responses as they come, or raise RpcError."""
        return self._stream("unary_stream", request, context)

    def stream_stream(self, requests: Any, context: CallContext) -> AsyncGenerator[object, None]:
        """Send the requests, and yield the responses as they come, or raise RpcError."""
        return self._stream("stream_stream", requests, context)

    async def _stream(self, name: str, request: Any, context: CallContext) -> AsyncGenerator[object, None]:
        attempt = self._begin(context)
        begun = False
        while True:
            carry = getattr(self._servers[attempt.server].transport, name)
            try:
                async with aclosing(carry(request, context)) as messages:
                    async for message in messages:
                        if not begun:
                            begun = True
                            self._answered(attempt)
                        yield message
            except RpcError as error:
                stays = begun or getattr(request, "spent", False)
                attempt = self._next_after(error, attempt, context, stays=stays)
            else:
                return

    async def aclose(self) -> None:
        """Close the connections to all servers. Does not suspend where they are sync."""
        self.closed = True
        failed: BaseException | None = None
        for server in self._servers:
            try:
                await server.transport.aclose()
            except BaseException as error:  # noqa: BLE001 - raised below
                failed = error
        if failed is not None:
            raise failed

    def _begin(self, context: CallContext) -> _Attempt:
        route = context.route
        if route is None:
            route = context.route = Route()
        elif len(route.tried) == len(self._servers):
            route.tried.clear()
        route.elsewhere = False
        attempt = self._attempt(route, context)
        assert attempt is not None  # some were not tried
        return attempt

    def _attempt(self, route: Route, context: CallContext) -> _Attempt | None:
        now = context.runtime.monotonic()
        server = self._rotation.pick(now, route.tried)
        if server is None:
            return None
        route.server = self._servers[server].url
        route.tried.add(server)
        others = self._rotation.working(route.tried)
        route.connect_timeout = None
        if others:
            remaining = context.remaining()
            share = MAX_CONNECT if remaining is None else remaining / (others + 1)
            route.connect_timeout = min(MAX_CONNECT, max(0.0, share))
        return _Attempt(server, now)

    def _next_after(
        self, error: RpcError, attempt: _Attempt, context: CallContext, *, stays: bool = False
    ) -> _Attempt:
        """Where a call goes after it failed; raises the error where it goes nowhere at once."""
        broken = self._judge(error, attempt, context)
        route = context.route
        assert route is not None
        if broken and not error.maybe_applied and not stays:
            following = self._attempt(route, context)
            if following is not None:
                return following
        error.server = route.server
        route.elsewhere = broken and self._rotation.working(route.tried) > 0
        raise error

    def _answered(self, attempt: _Attempt) -> None:
        if self._rotation.answered(attempt.server, attempt.began):
            _log.info("%s answers again", self._servers[attempt.server].url)

    def _judge(self, error: RpcError, attempt: _Attempt, context: CallContext) -> bool:
        """Whether an error says that the server itself does not work, so that another one is to be asked.

        One that says when to come again works: it has too many calls, or what all servers need is not there.
        """
        server, began = attempt
        now = context.runtime.monotonic()
        if error.code is StatusCode.DEADLINE_EXCEEDED and error.origin != "server":
            seconds = self._rotation.timed_out(server, began, now)
        elif error.code is StatusCode.UNAVAILABLE and error.retry_after is None:
            seconds = self._rotation.failed(server, began, now)
        else:
            if error.origin == "server":
                self._answered(attempt)
            return False
        if seconds:
            url = self._servers[server].url
            _log.warning("%s is avoided for %g s: %s", url, seconds, error.message)
        return error.code is StatusCode.UNAVAILABLE
