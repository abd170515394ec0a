"""Remembers answers of calls without side effects, and lets identical calls under way share one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Hashable
from concurrent.futures import Future
from contextlib import aclosing

from llm_cost_ops.config import CacheConfig
from llm_cost_ops.interceptors.waiting import outcome_of
from llm_cost_ops.rpc.context import TRACING, CallContext
from llm_cost_ops.rpc.forks import forget_in_children
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.rpc.method import Idempotency, MessageCodec
from llm_cost_ops.wire.errors import EncodeError

__all__ = ["Cache", "ExpiringEntries"]

# Metadata that differs from call to call and changes no answer.
_PASSING = TRACING | {"x-request-id"}
_HEALTH = "llm_cost_ops.v1.HealthService"


class ExpiringEntries:
    """At most `limit` values, each for `ttl` seconds; the least recently used goes first."""

    def __init__(self, limit: int, ttl: float) -> None:
        self._entries: OrderedDict[Hashable, tuple[float, bytes]] = OrderedDict()
        self._limit = limit
        self._ttl = ttl
        self._lock = threading.RLock()

    def get(self, key: Hashable, now: float) -> bytes | None:
        """The value, unless it has expired."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            if found[0] <= now:
                del self._entries[key]
                return None
            self._entries.move_to_end(key)
            return found[1]

    def put(self, key: Hashable, value: bytes, now: float) -> None:
        """Keep a value from now on."""
        with self._lock:
            self._entries[key] = (now + self._ttl, value)
            self._entries.move_to_end(key)
            if len(self._entries) > self._limit:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


class Cache:
    """Answers from memory where it can. Any call with side effects through it clears the memory.
    Streams of answers are not remembered, nor is how a service is at the moment.

    An answer belongs to a method, its request and the call's metadata, credentials included, and
    to the writes that were done before it was asked for. Answers are kept as bytes, so that nobody
    shares an object. A caller that waits for another's identical call asks by itself when that one
    fails; when it is cancelled, one of those who wait takes its place.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._writes = 0
        self.forget()
        forget_in_children(self)

    def forget(self) -> None:
        """Start again with an empty memory."""
        self._entries = ExpiringEntries(self._config.max_entries, self._config.ttl)
        self._under_way: dict[Hashable, Future[bytes | None]] = {}
        self._lock = threading.RLock()

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        method = context.method
        if method.idempotency is not Idempotency.NO_SIDE_EFFECTS:
            try:
                return await continuation(request, context)
            finally:
                self._written()
        key = self._key(request, context)
        if key is None:
            return await continuation(request, context)
        codec: MessageCodec[Res] = method.response
        while True:
            answer = self._entries.get(key, context.runtime.monotonic())
            if answer is not None:
                return _answered(answer, context, codec)
            with self._lock:
                leader = self._under_way.get(key)
                if leader is None:
                    mine = self._under_way[key] = Future()
            if leader is None:
                return await self._lead(key, mine, continuation, request, context)
            answer = await outcome_of(leader, context)
            if answer:
                return _answered(answer, context, codec)
            if answer is not None:
                return await continuation(request, context)

    async def intercept_stream_stream(
        self, continuation: StreamContinuation[Req, Res], requests: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        try:
            async with aclosing(continuation(requests, context)) as messages:
                async for message in messages:
                    self._written()
                    yield message
        finally:
            self._written()

    def _written(self) -> None:
        with self._lock:
            self._writes += 1
        self._entries.clear()

    def _key(self, request: object, context: CallContext) -> Hashable | None:
        method = context.method
        if method.service == _HEALTH:
            return None
        try:
            asked = method.request.encode_json(request)
        except EncodeError:
            return None  # whoever validates it will say what is wrong
        metadata = tuple(pair for pair in context.metadata if pair[0] not in _PASSING)
        return self._writes, method.path, asked, metadata

    async def _lead(
        self,
        key: Hashable,
        mine: Future[bytes | None],
        continuation: UnaryContinuation[Req, Res],
        request: Req,
        context: CallContext,
    ) -> Res:
        # What those who wait get: the answer, nothing when the call failed, None when it was given up.
        answer: bytes | None = None
        try:
            response = await continuation(request, context)
            answer = context.method.response.encode_json(response)
            self._entries.put(key, answer, context.runtime.monotonic())
            return response
        except Exception:
            answer = b""
            raise
        finally:
            with self._lock:
                self._under_way.pop(key, None)
            mine.set_result(answer)


def _answered(answer: bytes, context: CallContext, codec: MessageCodec[Res]) -> Res:
    context.attempt = 0
    context.response_status = 200
    return codec.decode_json(answer)
