"""Channels: what resources call. They start the deadline, make the key, and run the chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import Leaf, compose
from llm_cost_ops.rpc.metadata import Metadata
from llm_cost_ops.rpc.method import MethodDescriptor
from llm_cost_ops.rpc.runtime import AsyncRuntime, Runtime, SyncRuntime, drive
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.wire.uuid7 import uuid7

__all__ = ["UNSET", "AsyncChannel", "Channel"]

Req = TypeVar("Req")
Res = TypeVar("Res")


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET: Any = _Unset()


class _Core:
    """A leaf under a chain of interceptors, and the defaults of its calls."""

    def __init__(
        self,
        leaf: Leaf,
        interceptors: Sequence[Any],
        runtime: Runtime,
        *,
        timeout: float | None,
        metadata: Metadata | None,
        public_error: Callable[[RpcError], Exception] | None,
    ) -> None:
        self.leaf = leaf
        self.runtime = runtime
        self.interceptors = tuple(interceptors)
        self._unary_unary = compose(interceptors, leaf.unary_unary)
        self._timeout = timeout
        self._metadata = metadata or Metadata()
        self._public_error = public_error or _same

    def begin(self, method: MethodDescriptor[Any, Any], timeout: Any, headers: Any, key: str) -> CallContext:
        seconds = self._timeout if timeout is UNSET else timeout
        metadata = self._metadata.copy()
        if headers:
            try:
                for name, value in dict(headers).items():
                    metadata.set(name, value)
            except ValueError as error:
                raise _invalid("headers", str(error)) from None
        deadline = None
        if seconds is not None:
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
                raise _invalid("timeout", f"must be a number of seconds, 0 or more, not {seconds!r}")
            deadline = self.runtime.monotonic() + seconds
        return CallContext(method, self.runtime, metadata, deadline, key)

    async def unary_unary(
        self,
        method: MethodDescriptor[Req, Res],
        request: Req,
        timeout: Any = UNSET,
        headers: Any = None,
        idempotency_key: str = "",
    ) -> Any:
        try:
            context = self.begin(method, timeout, headers, idempotency_key)
            if method.keyed is not None:
                request, context.idempotency_key = method.keyed(request, idempotency_key, uuid7)
            response = await self._unary_unary(request, context)
        except RpcError as error:
            raise self._public_error(error) from error.__cause__
        return response if method.unwrap is None else getattr(response, method.unwrap)


def _same(error: RpcError) -> Exception:
    return error


def _invalid(field: str, description: str) -> RpcError:
    return RpcError(
        StatusCode.INVALID_ARGUMENT,
        f"{field} {description}",
        violations=[Violation(field, description)],
        origin="client",
    )


class Channel:
    """A sync client's way to the service."""

    def __init__(
        self,
        leaf: Leaf,
        interceptors: Sequence[Any] = (),
        *,
        runtime: Runtime | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        public_error: Callable[[RpcError], Exception] | None = None,
    ) -> None:
        self.core = _Core(
            leaf,
            interceptors,
            runtime or SyncRuntime(),
            timeout=timeout,
            metadata=metadata,
            public_error=public_error,
        )

    def unary_unary(
        self,
        method: MethodDescriptor[Req, Res],
        request: Req,
        timeout: Any = UNSET,
        headers: Any = None,
        idempotency_key: str = "",
    ) -> Any:
        """Call a method; what its Python method returns comes back."""
        return drive(self.core.unary_unary(method, request, timeout, headers, idempotency_key))

    def close(self) -> None:
        """Let go of the leaf's connections and threads."""
        drive(_close(self.core.leaf))


class AsyncChannel:
    """An async client's way to the service."""

    def __init__(
        self,
        leaf: Leaf,
        interceptors: Sequence[Any] = (),
        *,
        runtime: Runtime | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        public_error: Callable[[RpcError], Exception] | None = None,
    ) -> None:
        self.core = _Core(
            leaf,
            interceptors,
            runtime or AsyncRuntime(),
            timeout=timeout,
            metadata=metadata,
            public_error=public_error,
        )

    async def unary_unary(
        self,
        method: MethodDescriptor[Req, Res],
        request: Req,
        timeout: Any = UNSET,
        headers: Any = None,
        idempotency_key: str = "",
    ) -> Any:
        """Call a method; what its Python method returns comes back."""
        return await self.core.unary_unary(method, request, timeout, headers, idempotency_key)

    async def close(self) -> None:
        """Let go of the leaf's connections and threads."""
        await self.core.leaf.aclose()


async def _close(leaf: Leaf) -> None:
    await leaf.aclose()
