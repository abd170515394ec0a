"""Remembers answers of calls without side effects, and lets identical calls under way share one."""

from __future__ import annotations

import concurrent.futures
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from llm_cost_ops.config import CacheConfig
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import UnaryContinuation
from llm_cost_ops.rpc.method import Idempotency

__all__ = ["Cache", "ExpiringEntries"]


class ExpiringEntries:
    """At most `limit` values, each for `ttl` seconds; the least recently used goes first."""

    __slots__ = ("_entries", "_limit", "_lock", "_ttl")

    def __init__(self, limit: int, ttl: float) -> None:
        self._entries: OrderedDict[Hashable, tuple[float, bytes]] = OrderedDict()
        self._limit = limit
        self._ttl = ttl
        self._lock = threading.Lock()

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

    An answer belongs to a method, its request and the call's metadata, credentials included.
    Answers are kept as bytes, so that nobody shares an object. A caller that waits for another's
    identical call asks by itself if that one fails.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._entries = ExpiringEntries(config.max_entries, config.ttl)
        self._under_way: dict[Hashable, concurrent.futures.Future[bytes | None]] = {}
        self._lock = threading.Lock()

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation, request: Any, context: CallContext
    ) -> Any:
        method = context.method
        if method.idempotency is not Idempotency.NO_SIDE_EFFECTS:
            try:
                return await continuation(request, context)
            finally:
                self._entries.clear()
        key = (method.path, method.request.encode_json(request), tuple(context.metadata))
        while True:
            answer = self._entries.get(key, context.runtime.monotonic())
            if answer is not None:
                return method.response.decode_json(answer)
            with self._lock:
                leader = self._under_way.get(key)
                if leader is None:
                    mine = self._under_way[key] = concurrent.futures.Future()
            if leader is None:
                return await self._lead(key, mine, continuation, request, context)
            try:
                answer = await context.runtime.wait(leader, context.remaining())
            except TimeoutError:
                context.check_deadline()
                raise
            if answer is not None:
                return method.response.decode_json(answer)

    async def _lead(
        self,
        key: Hashable,
        mine: concurrent.futures.Future[bytes | None],
        continuation: UnaryContinuation,
        request: Any,
        context: CallContext,
    ) -> Any:
        answer = None
        try:
            response = await continuation(request, context)
            answer = context.method.response.encode_json(response)
            self._entries.put(key, answer, context.runtime.monotonic())
            return response
        finally:
            with self._lock:
                del self._under_way[key]
            mine.set_result(answer)
