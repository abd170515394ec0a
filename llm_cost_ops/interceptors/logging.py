"""One line per call, on the standard library's logging."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from llm_cost_ops.config import LoggingConfig
from llm_cost_ops.exceptions import APIError, CostOpsError, ServerError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation

__all__ = ["CallLogging", "level_of", "outcome_name"]


def level_of(error: BaseException | None, success: int) -> int:
    """The level of a call's line: the caller's mistakes are warnings, failures are errors.

    A call that was cancelled is neither.
    """
    if error is None or not isinstance(error, Exception):
        return success
    if isinstance(error, APIError) and not isinstance(error, ServerError):
        return logging.WARNING
    return logging.ERROR


def outcome_name(error: BaseException | None) -> str:
    """The error's code, or else its class; "OK" without an error, "CLOSED" for a stream left early."""
    if error is None:
        return "OK"
    if isinstance(error, GeneratorExit):
        return "CLOSED"
    code = getattr(error, "code", "")
    return code if isinstance(code, str) and code else type(error).__name__


class CallLogging:
    """Logs method, outcome, duration, attempts and request id; never a message or a credential.

    The facts stand in the line and as attributes of the record, where structlog's and other JSON
    formatters find them. At DEBUG a line also tells when a call begins. A stream has one line, at its end,
    with the number of its messages.
    """

    def __init__(self, config: LoggingConfig) -> None:
        self._logger = logging.getLogger(config.logger_name)
        self._success = logging.getLevelNamesMapping()[config.level]
        self._json = config.format == "json"

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Res:
        started = self._begun(context)
        try:
            response = await continuation(request, context)
        except BaseException as error:
            self._log(context, started, error)
            raise
        self._log(context, started, None)
        return response

    async def intercept_unary_stream(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        started = self._begun(context)
        messages = 0
        try:
            async with aclosing(continuation(request, context)) as stream:
                async for message in stream:
                    messages += 1
                    yield message
        except BaseException as error:
            self._log(context, started, error, messages=messages)
            raise
        self._log(context, started, None, messages=messages)

    intercept_stream_stream = intercept_unary_stream

    def _begun(self, context: CallContext) -> float:
        """The time now; at DEBUG a line tells it."""
        if self._logger.isEnabledFor(logging.DEBUG):
            remaining = context.remaining()
            deadline = {} if remaining is None else {"deadline_ms": round(remaining * 1000, 3)}
            self._write(
                logging.DEBUG, {"rpc_method": context.method.full_name, "outcome": "begun", **deadline}
            )
        return context.runtime.monotonic()

    def _log(self, context: CallContext, started: float, error: BaseException | None, **more: Any) -> None:
        level = level_of(error, self._success)
        if not self._logger.isEnabledFor(level):
            return
        facts: dict[str, Any] = {
            "rpc_method": context.method.full_name,
            "outcome": outcome_name(error),
            "duration_ms": round((context.runtime.monotonic() - started) * 1000, 3),
            "attempts": getattr(error, "attempts", context.attempt),
            "waited_ms": round(context.waited * 1000, 3),
            **more,
        }
        request_id = context.request_id or getattr(error, "request_id", "")
        if request_id:
            facts["request_id"] = request_id
        if context.batch:
            facts["batch"] = context.batch
        if context.route is not None:
            facts["server"] = context.route.server
        if isinstance(error, CostOpsError):
            facts["error"] = error.message
        self._write(level, facts)

    def _write(self, level: int, facts: dict[str, object]) -> None:
        if self._json:
            line = json.dumps(facts)
        else:
            line = " ".join(f"{name}={_one_line(value)}" for name, value in facts.items())
        self._logger.log(level, "%s", line, extra=facts)


def _one_line(value: object) -> str:
    """A value on one line, quoted if it could be read as more than one fact."""
    text = str(value)
    return text if text.isprintable() and not set(text) & set(' ="') else json.dumps(text)
