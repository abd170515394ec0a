"""The log of internal failures, with details that only the operator of the service may read."""

from __future__ import annotations

import logging
import time

from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["log_failure"]

_log = logging.getLogger("llm_cost_ops.server")
_MIN_BETWEEN_LINES = 1.0  # seconds
_logged: dict[tuple[StatusCode, str, str], float] = {}


def log_failure(error: RpcError, request_id: str) -> None:
    """Log what is not shown to the caller, such as the path of a file: each reason at most once a second."""
    if not error.local_detail:
        return
    reason, now = (error.code, error.error_code, error.message), time.monotonic()
    if now - _logged.get(reason, -_MIN_BETWEEN_LINES) >= _MIN_BETWEEN_LINES:
        _logged[reason] = now
        _log.error("%s, request %s", error.local_message, request_id)
