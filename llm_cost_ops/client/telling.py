"""How a program hears what became of its records: by its callbacks, and the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from llm_cost_ops._gen.messages import SubmitStatus, UsageRecord
from llm_cost_ops.client.flush_report import Rejected
from llm_cost_ops.client.submitting import Settled, invalid, reason_of
from llm_cost_ops.config import RecorderConfig

__all__ = ["Telling"]

_log = logging.getLogger("llm_cost_ops.recorder")

_ACCEPTED = (SubmitStatus.CREATED, SubmitStatus.DUPLICATE)
# A trouble is not logged again within so long.
_QUIET_SECONDS = 60.0
_WITHOUT_ORGANIZATION = ": give the client organization_id=…, or set LLM_COST_OPS_ORGANIZATION_ID"


class Telling:
    """Calls the callbacks of a recorder. `thread` is the recorder's own, once it runs."""

    def __init__(self, config: RecorderConfig) -> None:
        self._config = config
        self._said: dict[str, float] = {}
        self.thread: threading.Thread | None = None

    def say(self, kind: str, message: str) -> None:
        """Log a kind of trouble once, until a batch is delivered a minute later or more."""
        if kind not in self._said:
            self._said[kind] = time.monotonic()
            _log.warning("%s", message)

    def delivered(self) -> None:
        """What was said a while ago is news if it is said again."""
        quiet = time.monotonic() - _QUIET_SECONDS
        self._said = {kind: at for kind, at in list(self._said.items()) if at > quiet}

    def settled(self, settled: Settled) -> None:
        """What became of records that were answered for."""
        for record, result in settled:
            if result.status not in _ACCEPTED:
                self._refused(record, reason_of(result))
        on_result = self._config.on_result
        if on_result is not None:
            for record, result in settled:
                if record is not None:
                    self._call(on_result, record, result)

    def rejected(self, rejected: Rejected) -> None:
        """A record is not sent: as of one that a server refused."""
        self._refused(rejected.record, rejected.reason)
        if self._config.on_result is not None and rejected.record is not None:
            self._call(self._config.on_result, rejected.record, invalid(rejected.reason))

    def _refused(self, record: UsageRecord | None, reason: str) -> None:
        if self._config.on_error is not None:
            self._call(self._config.on_error, record, reason)
        else:
            what_to_do = _WITHOUT_ORGANIZATION if reason.startswith("organization_id is required") else ""
            self.say(f"rejected {reason[:40]}", f"a record was rejected: {reason}{what_to_do}")

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            # The recorder's own thread ends by none, such as sys.exit(): it has records to send.
            if not isinstance(error, Exception) and threading.current_thread() is not self.thread:
                raise
            _log.exception("a callback of the recorder failed")
