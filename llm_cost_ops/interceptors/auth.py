"""Puts the credentials on each attempt."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from llm_cost_ops.exceptions import AuthenticationError, ConfigurationError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import UnaryContinuation

__all__ = ["Auth"]

KeySource = str | Callable[[], str | Awaitable[str]]


class Auth:
    """Sends `Authorization: Bearer <key>`, unless the call brings its own.

    A callable is asked once and its key kept; on a 401 it is asked again, once per call. It may be
    async in the async client.
    """

    def __init__(self, source: KeySource) -> None:
        self._source = source
        self._key = source if isinstance(source, str) else ""
        self._lock = threading.Lock()

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation, request: Any, context: CallContext
    ) -> Any:
        if "authorization" in context.metadata and not context.authorized:
            return await continuation(request, context)
        key = self._key or await self._ask()
        self._set(context, key)
        try:
            return await continuation(request, context)
        except AuthenticationError:
            if isinstance(self._source, str):
                raise
            # Another call may have asked meanwhile: then its key is tried.
            key = await self._ask() if key == self._key else self._key
            self._set(context, key)
            return await continuation(request, context)

    async def _ask(self) -> str:
        assert not isinstance(self._source, str)
        key = self._source()
        if inspect.isawaitable(key):
            key = await key
        if not isinstance(key, str) or not key:
            raise ConfigurationError("api_key: the callable must return a key as text", parameter="api_key")
        with self._lock:
            self._key = key
        return key

    def _set(self, context: CallContext, key: str) -> None:
        context.authorized = True
        try:
            context.metadata.set("authorization", f"Bearer {key}")
        except ValueError:
            raise ConfigurationError(
                "api_key: the callable must return printable ASCII", parameter="api_key"
            ) from None

    def __repr__(self) -> str:
        return "Auth(***)"
