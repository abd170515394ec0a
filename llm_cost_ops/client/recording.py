"""A client's recorder: made when it is first used, and shared by the clients that are derived from it."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import llm_cost_ops.client.exits  # noqa: F401  # while atexit still takes functions, and before the program's
from llm_cost_ops._gen.messages import BatchReceipt, UsageRecord
from llm_cost_ops._gen.resources import AsyncUsageResource, UsageResource
from llm_cost_ops.client.attribution import Attributes, Attribution
from llm_cost_ops.rpc.channel import UNSET, AsyncChannel, Channel
from llm_cost_ops.rpc.dropped import when_dropped
from llm_cost_ops.rpc.forks import forget_in_children, quiesce_for_forks
from llm_cost_ops.rpc.threads import outside_of_loops, started

if TYPE_CHECKING:
    from llm_cost_ops.client.recorder import FlushReport, Recordable, Recorder
    from llm_cost_ops.config import RecorderConfig

__all__ = ["Recording", "async_connection", "build_record", "sync_connection"]


class Recording:
    """The recorder of a client. Safe for threads.

    The recorder does not keep it: when it is collected, as with a client that nobody closed, the recorder
    sends what was recorded, and ends.
    """

    def __init__(self, config: RecorderConfig, attribution: Attribution, connect: Callable[[], Any]) -> None:
        if config.spool is not None:
            # The recorder is made with the first record, when the program may be in another folder.
            with contextlib.suppress(FileNotFoundError):  # in a folder that is gone the spool says so
                config = config.replace(spool=str(Path(config.spool).absolute()))
        self._config = config
        self._attribution = attribution
        self._connect = connect
        self._recorder: Recorder | None = None
        self._closed = False
        self.forget()
        forget_in_children(self)
        quiesce_for_forks(self, uses_others=True)

    def forget(self) -> None:
        """In a forked child: who was making the recorder is the parent's."""
        self._lock = threading.RLock()

    def before_fork(self, until: float) -> None:
        """Have the recorder made: a child would wait for ever for a module that another thread imports."""
        self._held: bool = self._lock.acquire(timeout=max(until - time.monotonic(), 0.0))

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._held:
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Nothing is left to do after `forget`."""

    @property
    def recorder(self) -> Recorder:
        """The recorder, made if there is none yet."""
        if self._recorder is None:
            with self._lock:
                if self._recorder is None:
                    from llm_cost_ops.client.recorder import Recorder

                    recorder = Recorder(self._config, partial(build_record, self._attribution), self._connect)
                    when_dropped(self, recorder.end_when_sent)
                    # A signal handler may have been faster, in this very thread.
                    if self._closed or self._recorder is not None:
                        recorder.close(0)
                    self._recorder = self._recorder or recorder
        return self._recorder

    @property
    def begun(self) -> bool:
        """Whether there is a recorder."""
        return self._recorder is not None

    def flush(self, timeout: float | None = None) -> FlushReport:
        """See CostOpsClient.flush."""
        return self.recorder.flush(timeout)

    def close(self) -> None:
        """Send what is there, for at most the recorder's shutdown_timeout, and end."""
        self._closed = True
        if self._recorder is not None:
            self._recorder.close()

    def close_on_sigterm(self) -> None:
        """Have SIGTERM send what is there before it does what it did before."""
        previous: Any = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            # In a thread: the main one may hold a lock where the signal found it.
            closing = started(self.close, "llm-cost-ops-sigterm")
            if closing is None:
                self.close()
            else:
                closing.join(self._config.shutdown_timeout + 0.5)
            if callable(previous):
                previous(number, frame)
            else:
                signal.signal(number, previous or signal.SIG_DFL)
                os.kill(os.getpid(), number)

        signal.signal(signal.SIGTERM, handle)

    def whose(self, attributes: Attributes) -> Attributes:
        """What is recorded for a call that says so much: the client's own fields where it says nothing."""
        return self._attribution.in_force(attributes)

    def observe(self, build: Callable[[], UsageRecord], attributes: Attributes) -> None:
        """Take a record that an instrument saw, made when it is its turn. As `record` for the rest."""
        self.recorder.record(build, {}, attributes)

    def observe_abandoned(self, build: Callable[[], UsageRecord], attributes: Attributes) -> None:
        """The same, perhaps from a finalizer."""
        self.recorder.record_abandoned(build, attributes)

    def expect(self) -> None:
        """Be ready for a record that may come from a finalizer."""
        self.recorder.start()


_PER_CALL = frozenset(("timeout", "headers", "retry", "idempotency_key"))
# The arguments that `submit` takes as they are, by their types: others may be texts of what the field holds.
_PLAIN = frozenset(
    name
    for name, kind in UsageResource.submit.__annotations__.items()
    if kind in ("str", "int", "int | None", "bool") and name not in _PER_CALL
)


def build_record(
    attribution: Attribution, record: Recordable, fields: Mapping[str, Any], inner: Attributes
) -> UsageRecord:
    """The record that `submit` would send for the same arguments."""
    if callable(record):
        return attribution.in_force(inner).of(record())
    if record is None and _PLAIN.issuperset(fields):
        return attribution.in_force(inner).of(UsageRecord(**fields))
    arguments = fields
    if not _PER_CALL.isdisjoint(fields):
        arguments = {name: value for name, value in fields.items() if name not in _PER_CALL}
    submitted: Any = _AS_GIVEN.submit(record, **arguments)
    if not isinstance(submitted, UsageRecord):
        from llm_cost_ops.rules.requests import no_record

        raise TypeError("usage " + no_record("usage", submitted).description)
    made: UsageRecord = submitted
    if "idempotency_key" in fields:
        made = copy.copy(made)
        made.idempotency_key = fields["idempotency_key"]
    made = attribution.in_force(inner).of(made)
    return copy.copy(made) if made is record else made


class _Given:
    """Stands in for a channel: what would be sent is the answer."""

    def unary_unary(self, method: Any, request: Any, *_: Any) -> Any:
        return request.usage


_given: Any = _Given()
_AS_GIVEN = UsageResource(_given)


class _SyncConnection:
    """Sends over the client's own channel, which threads may share."""

    def __init__(self, channel: Channel) -> None:
        self._usage = UsageResource(channel)
        self._channel = channel

    def send(self, records: list[UsageRecord], timeout: float | None) -> BatchReceipt:
        return self._usage.submit_batch(records, timeout=_within(self._channel, timeout), retry=None)

    def close(self) -> None:
        """The channel is the client's to close."""


class _AsyncConnection:
    """Sends over an async client's channel, in an event loop of its own."""

    def __init__(self, channel: AsyncChannel) -> None:
        import asyncio  # here: a sync client has no use for it

        self._usage = AsyncUsageResource(channel)
        self._channel = channel

        self._runner = asyncio.Runner()

    def send(self, records: list[UsageRecord], timeout: float | None) -> BatchReceipt:
        async def submit() -> BatchReceipt:
            return await self._usage.submit_batch(
                records, timeout=_within(self._channel, timeout), retry=None
            )

        with outside_of_loops():
            return self._runner.run(submit())

    def close(self) -> None:
        with outside_of_loops():
            with contextlib.suppress(Exception):
                self._runner.run(self._channel.close())
            self._runner.close()


def _within(channel: Channel | AsyncChannel, seconds: float | None) -> float | None:
    """The timeout of a call that may take so many seconds, and no longer than the client's calls may."""
    own = channel.core.timeout
    return UNSET if seconds is None or (own is not None and own < seconds) else seconds


def sync_connection(channel: Channel) -> _SyncConnection:
    """A recorder's way to the service over a sync client's channel."""
    return _SyncConnection(channel)


def async_connection(channel: AsyncChannel) -> _AsyncConnection:
    """A recorder's way to the service over an async client's channel."""
    return _AsyncConnection(channel)
