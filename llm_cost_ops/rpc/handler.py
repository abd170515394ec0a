"""The server side of the machinery: from a method's path to its servicer, through interceptors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import Interceptors, compose
from llm_cost_ops.rpc.method import MethodDescriptor

__all__ = ["ServiceHandler"]


class ServiceHandler:
    """What answers calls. The in-process transport and both servers share it.

    `bindings` pairs each method descriptor with the servicer's bound coroutine function
    `(request, context) -> response`, or async generator function for a stream of responses; generated
    `bind_*` functions make them.

    `methods` are the descriptors by their paths, and `answers` what answers a method's calls: it is called
    with the request, or an async iterator of them, and the context. A unary call's answer is awaited, a
    stream's is an async generator, to be closed by who calls; both raise RpcError. A request of a stream that
    could not be decoded comes with an `error` in its `unknown_`.
    """

    def __init__(
        self,
        bindings: Iterable[tuple[MethodDescriptor[Any, Any], Any]],
        interceptors: Interceptors = (),
    ) -> None:
        self.methods: dict[str, MethodDescriptor[Any, Any]] = {}
        self.answers: dict[str, Callable[[Any, CallContext], Any]] = {}
        for method, implementation in bindings:
            name = f"intercept_{method.cardinality.value}"
            self.methods[method.path] = method
            self.answers[method.path] = compose(interceptors, implementation, name)
