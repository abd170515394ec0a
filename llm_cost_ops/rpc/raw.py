"""Raw responses: answers with all that came with them, and the resources whose methods give those."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from llm_cost_ops.rpc.context import CallContext, Metadata

if TYPE_CHECKING:
    from llm_cost_ops.rpc.channel import AsyncChannel, Channel
    from llm_cost_ops.rpc.pager import AsyncPager, Pager

__all__ = ["RawMethod", "RawResource", "RawResponse", "async_raw", "async_raw_pages", "raw", "raw_pages"]

P = ParamSpec("P")
T = TypeVar("T")


class RawMethod(Generic[P, T]):
    """A method of a resource as a class of raw responses has it.

    It is the same function: what it gives is decided by the channel of the object that it is called on.
    """

    def __init__(self, method: Callable[..., object]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, instance: object, owner: type | None = None) -> Callable[P, T]:
        return MethodType(self._method, instance) if instance is not None else self._method  # type: ignore[return-value]  # of its class


def raw(method: Callable[Concatenate[Any, P], T]) -> RawMethod[P, RawResponse[T]]:
    """A method that gives a RawResponse of what `method` gives."""
    return RawMethod(method)


def raw_pages(method: Callable[Concatenate[Any, P], Pager[T, Any]]) -> RawMethod[P, RawResponse[T]]:
    """A method that gives a RawResponse of one page of what `method` lists."""
    return RawMethod(method)


def async_raw(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> RawMethod[P, Coroutine[Any, Any, RawResponse[T]]]:
    """As `raw`, of an async method."""
    return RawMethod(method)


def async_raw_pages(
    method: Callable[Concatenate[Any, P], AsyncPager[T, Any]],
) -> RawMethod[P, Coroutine[Any, Any, RawResponse[T]]]:
    """As `raw_pages`, of an async client's method."""
    return RawMethod(method)


class RawResource:
    """The methods of a resource on a channel whose calls give RawResponse objects."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel | AsyncChannel) -> None:
        self._channel = channel


class RawResponse(Generic[T]):
    """An answer with all that came with it.

    `parsed`, or `data`, is what the method returns without `with_raw_response`; `message` the whole
    response message. `status` is the HTTP status, or the one that HTTP would have; `headers` what
    the server sent beside its answer, gRPC's trailers among them. `attempts` counts how often the
    call was sent, 0 when the cache answered; `waited` is the seconds before attempts. `batch` is
    the request id of the batch that a submit rode in, which then is its own too, or "" without one.
    """

    __slots__ = ("attempts", "batch", "headers", "message", "parsed", "request_id", "status", "waited")

    def __init__(self, message: Any, parsed: T, context: CallContext) -> None:
        self.message = message
        self.parsed = parsed
        self.status = context.response_status
        self.headers = context.response_metadata or Metadata()
        self.attempts = context.attempt
        self.waited = context.waited
        self.request_id = context.request_id
        self.batch = context.batch

    @property
    def data(self) -> T:
        """The same as `parsed`."""
        return self.parsed

    def __repr__(self) -> str:
        return (
            f"RawResponse(status={self.status}, attempts={self.attempts}, request_id={self.request_id!r}, "
            f"headers={self.headers!r}, parsed={self.parsed!r})"
        )
