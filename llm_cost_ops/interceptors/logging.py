"""One line per call, on the standard library's logging."""

from __future__ import annotations

import json
import logging
from typing import Any

from llm_cost_ops.config import LoggingConfig
from llm_cost_ops.exceptions import APIError, CostOpsError, ServerError
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import UnaryContinuation

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
    """The error's code, or else its class; "OK" without an error."""
    if error is None:
        return "OK"
    code = getattr(error, "code", "")
    return code if isinstance(code, str) and code else type(error).__name__


class CallLogging:
    """Logs method, outcome, duration, attempts and request id; never a message or a credential.

    The facts stand in the line and as attributes of the record, where structlog's and other JSON
    formatters find them. At DEBUG a line also tells when a call begins.
    """

    def __init__(self, config: LoggingConfig) -> None:
        self._logger = logging.getLogger(config.logger_name)
        self._success = logging.getLevelNamesMapping()[config.level]
        self._json = config.format == "json"

    async def intercept_unary_unary(
        self, continuation: UnaryContinuation, request: Any, context: CallContext
    ) -> Any:
        started = context.runtime.monotonic()
        if self._logger.isEnabledFor(logging.DEBUG):
            remaining = context.remaining()
            deadline = {} if remaining is None else {"deadline_ms": round(remaining * 1000, 3)}
            self._write(
                logging.DEBUG, {"rpc_method": context.method.full_name, "outcome": "begun", **deadline}
            )
        try:
            response = await continuation(request, context)
        except BaseException as error:
            self._log(context, started, error)
            raise
        self._log(context, started, None)
        return response

    def _log(self, context: CallContext, started: float, error: BaseException | None) -> None:
        level = level_of(error, self._success)
        if not self._logger.isEnabledFor(level):
            return
        facts: dict[str, Any] = {
            "rpc_method": context.method.full_name,
            "outcome": outcome_name(error),
            "duration_ms": round((context.runtime.monotonic() - started) * 1000, 3),
            "attempts": getattr(error, "attempts", context.attempt),
            "waited_ms": round(context.waited * 1000, 3),
        }
        request_id = context.request_id or getattr(error, "request_id", "")
        if request_id:
            facts["request_id"] = request_id
        if isinstance(error, CostOpsError):
            facts["error"] = error.message
        self._write(level, facts)

    def _write(self, level: int, facts: dict[str, Any]) -> None:
        if self._json:
            line = json.dumps(facts)
        else:
            line = " ".join(f"{name}={_one_line(value)}" for name, value in facts.items())
        self._logger.log(level, "%s", line, extra=facts)


def _one_line(value: Any) -> str:
    """A value that can't begin a line of its own, nor look like another fact."""
    text = str(value)
    return text if text.isprintable() and not set(text) & set(' ="') else json.dumps(text)
