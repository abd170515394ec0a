"""Whose calls they are: what a client, or a block of code, says of records that do not say it themselves."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypedDict

import msgspec

from llm_cost_ops._gen.messages import (
    BatchSubmitUsageRequest,
    CorrectUsageRequest,
    EstimateCostRequest,
    GetCostRequest,
    ListUsageRevisionsRequest,
    StreamUsageRequest,
    SubmitUsageRequest,
    UsageRecord,
    VerifyCostRequest,
    VoidUsageRequest,
)
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.wire.coerce import texts

__all__ = [
    "Attributes",
    "Attribution",
    "AttributionFields",
    "attribute",
    "attributes_of",
    "current_attributes",
]


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of a record that its caller need not repeat; empty ones say nothing."""

    organization_id: str = ""
    project_id: str = ""
    user_id: str = ""
    session_id: str = ""
    labels: Mapping[str, str] = {}
    tags: Sequence[str] = ()

    def over(self, outer: Attributes) -> Attributes:
        """These, and the outer ones where these say nothing; labels and tags of both."""
        if outer is _NONE:
            return self
        return Attributes(
            organization_id=self.organization_id or outer.organization_id,
            project_id=self.project_id or outer.project_id,
            user_id=self.user_id or outer.user_id,
            session_id=self.session_id or outer.session_id,
            labels={**outer.labels, **self.labels},
            tags=tuple(dict.fromkeys((*outer.tags, *self.tags))),
        )

    def of(self, record: UsageRecord) -> UsageRecord:
        """The record with these where it says nothing: a copy, or itself where nothing is missing."""
        if self is _NONE:
            return record
        # Written out: a loop over the names takes as long as all the rest.
        missing: dict[str, Any] = {}
        if self.organization_id and not record.organization_id:
            missing["organization_id"] = self.organization_id
        if self.project_id and not record.project_id:
            missing["project_id"] = self.project_id
        if self.user_id and not record.user_id:
            missing["user_id"] = self.user_id
        if self.session_id and not record.session_id:
            missing["session_id"] = self.session_id
        if self.labels and isinstance(record.labels, dict):
            missing["labels"] = {**self.labels, **record.labels}
        if self.tags and isinstance(record.tags, list):
            missing["tags"] = list(dict.fromkeys((*record.tags, *self.tags)))
        return msgspec.structs.replace(record, **missing) if missing else record


class AttributionFields(TypedDict, total=False):
    """What may be said of whose calls they are: the keywords of `attribute`."""

    organization_id: str
    project_id: str
    user_id: str
    session_id: str
    labels: Mapping[str, str] | None
    tags: str | Sequence[str]


def attributes_of(fields: AttributionFields) -> Attributes:
    """What the keywords of `attribute` say; one text is one tag, as of `submit`."""
    given: dict[str, Any] = {
        **fields,
        "labels": dict(fields.get("labels") or {}),
        "tags": tuple(texts(fields.get("tags"))),
    }
    return Attributes(**given)


_NONE = Attributes()

# They look a record up in the organization that they name.
_OF_ONE_RECORD = (
    GetCostRequest | VerifyCostRequest | CorrectUsageRequest | VoidUsageRequest | ListUsageRevisionsRequest
)
_current: ContextVar[Attributes] = ContextVar("llm_cost_ops.attributes", default=_NONE)


def current_attributes() -> Attributes:
    """What the blocks of code around this place say."""
    return _current.get()


@contextmanager
def attribute(
    *,
    organization_id: str = "",
    project_id: str = "",
    user_id: str = "",
    session_id: str = "",
    labels: Mapping[str, str] | None = None,
    tags: str | Sequence[str] = (),
) -> Iterator[None]:
    """Say whose the calls are that are recorded in a block, in tasks that it starts too.

    A record's own fields win, then the innermost block, then the client's defaults; labels and tags are
    added up. Threads that are started meanwhile have the block's attributes only when they run in a copy of
    its context (contextvars.copy_context).
    """
    inner = attributes_of(
        {
            "organization_id": organization_id,
            "project_id": project_id,
            "user_id": user_id,
            "session_id": session_id,
            "labels": labels,
            "tags": tags,
        }
    )
    token = _current.set(inner.over(_current.get()))
    try:
        yield
    finally:
        # A generator that is dropped is closed in another context, in which nothing was set.
        with suppress(ValueError):
            _current.reset(token)


class Attribution:
    """Fills in what the client and the blocks of code around a call say of its records."""

    def __init__(self, defaults: Attributes) -> None:
        self._defaults = defaults if defaults != _NONE else _NONE

    # No coroutine of its own: each one that waits with a call costs the garbage collector.
    def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Awaitable[Res]:
        inner = _current.get()
        attributes = self._defaults if inner is _NONE else inner.over(self._defaults)
        if attributes is not _NONE:
            request = _attributed(request, attributes)
        return continuation(request, context)

    async def intercept_stream_stream(
        self,
        continuation: StreamContinuation[AsyncIterable[Req], Res],
        requests: AsyncIterable[Req],
        context: CallContext,
    ) -> AsyncGenerator[Res, None]:
        attributes = self.in_force(_current.get())
        if attributes is not _NONE:
            requests = _each(requests, attributes)
        async with aclosing(continuation(requests, context)) as messages:
            async for message in messages:
                yield message

    def in_force(self, inner: Attributes) -> Attributes:
        """What holds for a call inside a block that says `inner`."""
        return self._defaults if inner is _NONE else inner.over(self._defaults)


async def _each(requests: AsyncIterable[Req], attributes: Attributes) -> AsyncIterator[Req]:
    async for request in requests:
        yield _attributed(request, attributes)


def _attributed(request: object, attributes: Attributes) -> Any:
    if isinstance(request, SubmitUsageRequest | EstimateCostRequest):
        if type(request.usage) is UsageRecord:
            usage = attributes.of(request.usage)
            return request if usage is request.usage else msgspec.structs.replace(request, usage=usage)
    elif isinstance(request, BatchSubmitUsageRequest | StreamUsageRequest) and isinstance(
        request.records, list
    ):
        records = [attributes.of(item) if type(item) is UsageRecord else item for item in request.records]
        return msgspec.structs.replace(request, records=records)
    elif isinstance(request, _OF_ONE_RECORD) and attributes.organization_id and not request.organization_id:
        return msgspec.structs.replace(request, organization_id=attributes.organization_id)
    return request
