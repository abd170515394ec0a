"""Refuses a bad request before anything is sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any

from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.rpc.status import RpcError, Violation, invalid_arguments
from llm_cost_ops.wire.validation import refuse_unknown

__all__ = ["UNKNOWN_FIELDS", "Check", "Validation", "keeps_unknown"]

UNKNOWN_FIELDS = "llm-cost-ops-unknown-fields"
"""The metadata by which a caller says what becomes of unknown fields in a write: "keep" or "refuse"."""

_KEEP = (UNKNOWN_FIELDS, "keep")

Check = Callable[[Any, datetime, list[Violation], bool], None]


class Validation:
    """Runs a request's rules. It stands in a client's chain, and in a server's.

    `checks` maps a method's path to the check that takes the place of the generated rules: it gets
    the request, the time now in UTC, the list to add violations to, and whether unknown fields are
    kept. The requests of a stream are checked by who answers them, one by one. A client names the
    function that makes its `public_error`.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        origin: str,
        public_error: Callable[[RpcError], Exception] | None = None,
    ) -> None:
        self._checks = checks
        self._origin = origin
        self._public_error = public_error

    def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Awaitable[Res]:
        self._check(request, context)
        return continuation(request, context)

    async def intercept_unary_stream(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        self._check(request, context)
        async with aclosing(continuation(request, context)) as messages:
            async for message in messages:
                yield message

    def _check(self, request: Any, context: CallContext) -> None:
        violations: list[Violation] = []
        keep_unknown = keeps_unknown(context.metadata)
        if request.unknown_ and not keep_unknown:
            refuse_unknown(request, "", violations, nested=False)
        check = self._checks.get(context.method.path)
        if check is not None:
            check(request, context.now(), violations, keep_unknown)
        else:
            context.method.request.validate(request, "", violations)
        if violations:
            error = invalid_arguments(violations, origin=self._origin)
            raise error if self._public_error is None else self._public_error(error)


def keeps_unknown(metadata: Metadata) -> bool:
    """Whether a call asks for its unknown fields to be kept."""
    # Mostly nobody says anything, and that is found out in a moment.
    return _KEEP in metadata.pairs and metadata.get(UNKNOWN_FIELDS) == "keep"
