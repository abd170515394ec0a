"""The in-process transport: a call goes straight to the servicers, with nothing serialised."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from llm_cost_ops.rpc.context import CallContext, uuid7
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.status import RpcError, StatusCode, client_closed

__all__ = ["InProcessTransport"]

_log = logging.getLogger("llm_cost_ops.server")


class InProcessTransport:
    """Answers calls in the process, sync or async: it awaits what the handler awaits.

    The server's side gets a context of its own, with a copy of the metadata, and the deadline. The
    messages are not copied: servicers neither change a request nor keep a part of it that can be
    changed, and the response belongs to the caller. `close` lets go of what the handler holds.
    """

    def __init__(self, handler: ServiceHandler, close: Callable[[], Awaitable[None]] | None = None) -> None:
        self._handler = handler
        self._close = close
        self.closed = False

    async def unary_unary(self, request: object, context: CallContext) -> object:
        """Call the servicer, and return its response or raise RpcError."""
        served = self._served(context)
        try:
            response = await self._answer(context)(request, served)
        except RpcError as error:
            raise self._with_request_id(error, served) from error.__cause__
        except Exception as error:
            raise _hidden(error, served) from error
        finally:
            context.response_metadata = served.response_metadata
        context.response_status = served.response_status or context.method.success_status
        return response

    def unary_stream(self, request: object, context: CallContext) -> AsyncGenerator[object, None]:
        """Call the servicer, and yield its responses or raise RpcError."""
        return self._stream(request, context)

    def stream_stream(self, requests: Any, context: CallContext) -> AsyncGenerator[object, None]:
        """Hand the requests to the servicer, and yield its responses or raise RpcError."""
        return self._stream(requests, context)

    async def _stream(self, request: object, context: CallContext) -> AsyncGenerator[object, None]:
        served = self._served(context)
        try:
            async with aclosing(self._answer(context)(request, served)) as responses:
                async for response in responses:
                    context.response_status = served.response_status or context.method.success_status
                    yield response
        except RpcError as error:
            raise self._with_request_id(error, served) from error.__cause__
        except Exception as error:
            if error is getattr(request, "error", None):
                raise  # the caller's own
            raise _hidden(error, served) from error
        finally:
            context.response_metadata = served.response_metadata

    def _answer(self, context: CallContext) -> Callable[[Any, CallContext], Any]:
        answer = self._handler.answers.get(context.method.path)
        if answer is None:
            raise RpcError(StatusCode.UNIMPLEMENTED, f"no method {context.method.path}")
        return answer

    def _served(self, context: CallContext) -> CallContext:
        """The server's side of the call."""
        deadline = context.deadline
        if deadline is not None and context.runtime.monotonic() >= deadline:
            context.check_deadline()
        served = CallContext(
            context.method,
            context.runtime,
            context.metadata.copy(),
            deadline,
            context.idempotency_key,
        )
        served.request_id = context.request_id = context.request_id or uuid7()
        return served

    def _with_request_id(self, error: RpcError, served: CallContext) -> RpcError:
        if self.closed and error.code is StatusCode.FAILED_PRECONDITION:
            return client_closed()  # it was closed meanwhile, and the store says so
        if error.origin != "client":
            error.request_id = error.request_id or served.request_id
        return error

    async def aclose(self) -> None:
        """Let go of what the handler holds; once."""
        self.closed = True
        close, self._close = self._close, None
        if close is not None:
            await close()


def _hidden(error: Exception, served: CallContext) -> RpcError:
    """What is told of an error that the servicer did not mean to raise."""
    _log.error("%s failed, request %s", served.method.name, served.request_id, exc_info=error)
    return RpcError(StatusCode.INTERNAL, "internal error", request_id=served.request_id)
