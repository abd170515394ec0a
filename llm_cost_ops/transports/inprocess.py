"""The in-process leaf: a call goes straight to the servicers, with nothing serialised."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.wire.uuid7 import uuid7

__all__ = ["InProcessLeaf"]

_log = logging.getLogger("llm_cost_ops.server")


class InProcessLeaf:
    """Answers calls in the process, sync or async: it awaits what the handler awaits.

    The server's side gets a context of its own, with a copy of the metadata, and the deadline. The
    messages are not copied: servicers neither change a request nor keep a part of it that can be
    changed, and the response belongs to the caller. `close` lets go of what the handler holds.
    """

    def __init__(self, handler: ServiceHandler, close: Callable[[], Awaitable[None]] | None = None) -> None:
        self._handler = handler
        self._close = close

    async def unary_unary(self, request: Any, context: CallContext) -> Any:
        """Call the servicer, and return its response or raise RpcError."""
        context.check_deadline()
        method = context.method
        served = CallContext(
            method, context.runtime, context.metadata.copy(), context.deadline, context.idempotency_key
        )
        served.request_id = context.request_id = context.request_id or uuid7()
        try:
            response = await self._handler.unary_unary(request, served)
        except RpcError as error:
            error.request_id = error.request_id or served.request_id
            raise
        except Exception as error:
            _log.exception("%s failed, request %s", method.name, served.request_id)
            raise RpcError(StatusCode.INTERNAL, "internal error", request_id=served.request_id) from error
        finally:
            context.response_metadata = served.response_metadata
        usual = 200 if method.http is None else method.http.status
        context.response_status = served.response_status or usual
        return response

    async def aclose(self) -> None:
        """Let go of what the handler holds; once."""
        close, self._close = self._close, None
        if close is not None:
            await close()
