"""The server side of the machinery: from a method's name to its servicer, through interceptors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable
from typing import Any

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import Interceptors, compose
from llm_cost_ops.rpc.method import MethodDescriptor
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["ServiceHandler"]


class ServiceHandler:
    """Routes calls to servicers. The in-process transport and both servers share it.

    `bindings` pairs each method descriptor with the servicer's bound coroutine function
    `(request, context) -> response`, or async generator function for a stream of responses; generated
    `bind_*` functions make them.
    """

    def __init__(
        self,
        bindings: Iterable[tuple[MethodDescriptor[Any, Any], Any]],
        interceptors: Interceptors = (),
    ) -> None:
        self.methods: dict[str, MethodDescriptor[Any, Any]] = {}
        self._chains: dict[str, Any] = {}
        for method, implementation in bindings:
            name = f"intercept_{method.cardinality.value}"
            self.methods[method.path] = method
            self._chains[method.path] = compose(interceptors, implementation, name)

    def unary_unary(self, request: object, context: CallContext) -> Awaitable[Any]:
        """Answer a unary call, or raise RpcError."""
        chain = self._chains.get(context.method.path) or self._chain(context)
        answer: Awaitable[Any] = chain(request, context)
        return answer

    def unary_stream(self, request: object, context: CallContext) -> AsyncGenerator[Any, None]:
        """Answer a call with a stream of responses, or raise RpcError. To be closed by who calls."""
        stream: AsyncGenerator[Any, None] = self._chain(context)(request, context)
        return stream

    def stream_stream(
        self, requests: AsyncIterator[object], context: CallContext
    ) -> AsyncGenerator[Any, None]:
        """Answer a stream of requests with one of responses, or raise RpcError. To be closed by who calls.

        A request that could not be decoded comes with an `error` in its `unknown_`.
        """
        stream: AsyncGenerator[Any, None] = self._chain(context)(requests, context)
        return stream

    def _chain(self, context: CallContext) -> Any:
        chain = self._chains.get(context.method.path)
        if chain is None:
            raise RpcError(StatusCode.UNIMPLEMENTED, f"no method {context.method.path}")
        return chain
