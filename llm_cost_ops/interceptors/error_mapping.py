"""Turns `RpcError` into the public error tree; innermost, so every interceptor sees one tree."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from llm_cost_ops.exceptions import CostOpsError, error_from_rpc
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["ErrorMapping"]


class ErrorMapping:
    """Maps what the transport raised, with the attempts and the seconds waited, and the cause chained."""

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        try:
            return await continuation(request, context)
        except RpcError as error:
            raise _public(error, context) from error.__cause__

    async def intercept_unary_stream(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        try:
            async with aclosing(continuation(request, context)) as messages:
                async for message in messages:
                    yield message
        except RpcError as error:
            raise _public(error, context) from error.__cause__

    intercept_stream_stream = intercept_unary_stream


def _public(error: RpcError, context: CallContext) -> CostOpsError:
    refused = error.origin == "client" and error.code is StatusCode.INVALID_ARGUMENT
    made = error_from_rpc(error, 0 if refused else context.attempt, context.waited)
    if context.route is not None:
        made.server = context.route.server
    return made
