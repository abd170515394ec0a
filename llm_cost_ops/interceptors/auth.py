"""Puts the credentials on each attempt."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from llm_cost_ops.exceptions import AuthenticationError, ConfigurationError, CostOpsError, ValidationError
from llm_cost_ops.interceptors.waiting import outcome_of, within_deadline
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.forks import forget_in_children
from llm_cost_ops.rpc.interceptor import Req, Res, UnaryContinuation
from llm_cost_ops.rpc.status import Violation
from llm_cost_ops.rpc.streams import AroundStart

__all__ = ["Auth", "KeySource", "redacted"]

# A shorter key may be a part of any text.
_MIN_LENGTH = 8

KeySource = str | Callable[[], str | Awaitable[str]]


class Auth(AroundStart):
    """Sends `Authorization: Bearer <key>`, unless the call brings its own.

    A callable is asked once and its key kept; on a 401 it is asked again, once per attempt. Calls
    that need a key at the same time share one question: the first of them asks, and if its deadline
    passes meanwhile, or it is cancelled, the next one asks again. The callable may be async in the
    async client; there it is cancelled at the deadline. A callable that blocks can't be cut short, in
    either client: a call that asks one too long fails once it returns, while calls that wait for the
    answer in other threads keep their own deadlines. A key that a server repeats in an error is taken
    out of it.
    """

    def __init__(self, source: KeySource) -> None:
        self._source = source
        self._key = ""
        self._pair: tuple[str, str | bytes] = ("authorization", "")
        self._asked = 0
        if isinstance(source, str):
            self._keep(source)
        self.forget()
        forget_in_children(self)

    def forget(self) -> None:
        """In a forked child: forget that the parent is asking for a key."""
        self._asking: Future[None] | None = None
        self._lock = threading.RLock()

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        if "authorization" in context.metadata and not context.authorized:
            return await continuation(request, context)
        asked = self._asked
        key = self._key or await self._fresh(asked, context)
        context.metadata.put(self._pair)
        context.authorized = True
        try:
            return await continuation(request, context)
        except CostOpsError as error:
            _clean(error, key)
            if isinstance(self._source, str) or not isinstance(error, AuthenticationError):
                raise
        key = await self._fresh(max(asked, 1), context)
        context.metadata.put(self._pair)
        context.attempt += 1
        try:
            return await continuation(request, context)
        except CostOpsError as error:
            _clean(error, key)
            raise

    def failed_later(self, error: Exception, context: CallContext) -> None:
        """Take the key out of an error in the middle of a stream."""
        if isinstance(error, CostOpsError) and context.authorized:
            _clean(error, self._key)

    async def _fresh(self, asked: int, context: CallContext) -> str:
        """A key that is newer than the one of question number `asked`: asked for here or elsewhere."""
        while True:
            with self._lock:
                if self._asked != asked:
                    return self._key
                asking = self._asking
                if asking is None:
                    mine = self._asking = Future()
            if asking is None:
                break
            await outcome_of(asking, context)
        try:
            key = await self._ask(context)
            with self._lock:
                self._keep(key)
                self._asked += 1
            return key
        finally:
            with self._lock:
                self._asking = None
            mine.set_result(None)

    async def _ask(self, context: CallContext) -> str:
        assert not isinstance(self._source, str)
        key = self._source()
        if inspect.isawaitable(key):
            key = await within_deadline(key, context)
        if not isinstance(key, str) or not key:
            raise ConfigurationError("api_key: the callable must return a key as text", parameter="api_key")
        return key

    def _keep(self, key: str) -> None:
        try:
            [self._pair] = Metadata([("authorization", f"Bearer {key}")])
        except ValueError:
            raise ConfigurationError(
                "api_key: the callable must return printable ASCII", parameter="api_key"
            ) from None
        self._key = key

    def __repr__(self) -> str:
        return "Auth(***)"


def redacted(value: object, secret: str) -> Any:
    """A value as JSON has them, with the secret replaced wherever it stands in a text."""
    if isinstance(value, str):
        return value.replace(secret, "***")
    if isinstance(value, dict):
        return {redacted(name, secret): redacted(item, secret) for name, item in value.items()}
    if isinstance(value, list):
        return [redacted(item, secret) for item in value]
    return value


def _clean(error: CostOpsError, key: str) -> None:
    if len(key) < _MIN_LENGTH or not (key in error.message or key in repr(error.__dict__)):
        return
    error.message = redacted(error.message, key)
    error.response = redacted(error.response, key)
    error.args = tuple(redacted(list(error.args), key))
    error.__context__ = None  # the internal error, which says the same
    if isinstance(error, ValidationError):
        error.violations = tuple(Violation(f, redacted(rule, key)) for f, rule in error.violations)
