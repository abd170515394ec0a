"""Whose call it is: from the key in a call's metadata to its principal."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from typing import TypeVar

from llm_cost_ops.ledger import KeyStore
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service.access.keys import principal_of
from llm_cost_ops.service.access.tenancy import OPEN, Principal, check_role

__all__ = ["Authentication"]

T = TypeVar("T")

_FRESH = 1.0


class Authentication:
    """Asks every call but those of health for `authorization: Bearer <key>`, and sets the principal.

    Without `required` the calls of a store that never held a key pass, and from its first key on they do
    not; a revoked key counts. Keys are looked up for each call, so that a key that is revoked, by whichever
    process, is refused from then on. Streams ask again before a message that they are sent, exports before
    one that they give, where it comes a second or more after the last look. A missing, unknown, revoked or
    expired key: UNAUTHENTICATED, in the same words.
    """

    def __init__(self, keys: KeyStore, *, required: bool) -> None:
        self._keys = keys
        self._required = required

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        if context.principal is None and not context.admitted:
            await self.admit(context)
        return await continuation(request, context)

    async def intercept_unary_stream(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        await self.admit(context)
        async with (
            aclosing(continuation(request, context)) as messages,
            aclosing(self._asked(messages, context)) as asked,
        ):
            async for message in asked:
                yield message

    async def intercept_stream_stream(
        self,
        continuation: StreamContinuation[AsyncIterable[Req], Res],
        requests: AsyncIterable[Req],
        context: CallContext,
    ) -> AsyncGenerator[Res, None]:
        await self.admit(context)
        # Its answers are let through: they say what was written while the key was in force.
        async with (
            aclosing(self._asked(requests, context)) as asked,
            aclosing(continuation(asked, context)) as messages,
        ):
            async for message in messages:
                yield message

    async def _asked(self, messages: AsyncIterable[T], context: CallContext) -> AsyncGenerator[T, None]:
        """The messages, as long as the key is in force: a stream may wait long for the next."""
        looked = context.runtime.monotonic()
        async for message in messages:
            if context.runtime.monotonic() - looked >= _FRESH:
                await self.admit(context)
                looked = context.runtime.monotonic()
            yield message

    async def admit(self, context: CallContext) -> None:
        """Set the principal, or raise UNAUTHENTICATED; PERMISSION_DENIED when its role may not call that.

        A server asks before it reads the request, and a unary call is asked once.
        """
        if context.method.path in OPEN:
            return
        principal = await self.principal(context)
        if principal is not None:
            context.principal = principal
            check_role(context)
        elif self._required or await self._keys.any(context):
            raise RpcError(
                StatusCode.UNAUTHENTICATED, "a valid API key is needed, as `Authorization: Bearer lco_...`"
            )
        context.admitted = True

    async def principal(self, context: CallContext) -> Principal | None:
        """Whose key a call carries; None without one that is in force."""
        key = _bearer(context.metadata)
        return await principal_of(self._keys, key, context) if key else None


def _bearer(metadata: Metadata) -> str:
    sent = metadata.get_all("authorization")
    if len(sent) != 1 or not isinstance(sent[0], str):
        return ""
    scheme, _, key = sent[0].partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
