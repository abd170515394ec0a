"""Recording beside the caller's work: `record` puts a record into a queue, and a thread sends what is there.

Nothing here waits for the network on the caller's thread. A record keeps the key that it was given when it
was recorded, so that it counts once however often it is sent.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count, islice
from math import inf
from typing import Any

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.client.attribution import Attributes, current_attributes
from llm_cost_ops.client.exits import close_at_exit, close_in_workers, closed, keep_until_exit
from llm_cost_ops.client.flush_report import FlushReport, Rejected, Tally
from llm_cost_ops.client.recordable import Builder, Raw, Recordable, as_it_is, as_they_are, read_record
from llm_cost_ops.client.spool import Spool, SpoolBatch, SpoolEnteredError, SpoolFullError, SpoolSyncError
from llm_cost_ops.client.submitting import Connection, Line, Settled, submitted
from llm_cost_ops.client.telling import Telling
from llm_cost_ops.config import RecorderConfig
from llm_cost_ops.exceptions import RecorderFullError
from llm_cost_ops.rpc.backoff import Backoff
from llm_cost_ops.rpc.dropped import ends_soon
from llm_cost_ops.rpc.forks import forget_in_children, quiesce_for_forks
from llm_cost_ops.rpc.wake import Bell

__all__ = ["MAX_BATCH_BYTES", "MAX_BATCH_RECORDS", "FlushReport", "Recordable", "Recorder"]

MAX_BATCH_RECORDS = 1000
MAX_BATCH_BYTES = 1024 * 1024
_BACKOFF = Backoff(0.1, 5.0)
# How often what dead processes left in the spool is looked for.
_TAKE_OVER_SECONDS = 5.0
# Who closes waits so long for the thread to see it, beyond the time there is for sending.
_LAST_SECONDS = 0.1
# A fork waits so long for the first batch to come through.
_FORK_SECONDS = 1.0
# A thread that has nothing to do looks up so often, lest a wake-up that was lost on the way lasts.
_IDLE_SECONDS = 1.0
# An idle thread that is woken lets the caller go on for so long: what follows leaves together, and a caller
# that records once does not share the interpreter with the work on its record (65 to 100 us of a call).
_GATHER_SECONDS = 0.01

_log = logging.getLogger("llm_cost_ops.recorder")

# A record to be sent, or why what lies in the spool is none; and its bytes as JSON.
_Waiting = tuple[UsageRecord | str, int]


class Recorder:
    """Takes records from any thread or task, and sends them in batches from a thread of its own.

    Where no thread can be started, as in an interpreter that is ending, who flushes or closes sends them.

    `build` makes a record of what `record` was called with, or raises; `connect` opens the way to the service
    when the first batch is to be sent. Nothing is started before the first record. Without a spool what is in
    memory is lost when the process is killed; with one a record survives it once `record` returned.
    """

    def __init__(
        self,
        config: RecorderConfig,
        build: Callable[[Recordable, Mapping[str, Any], Attributes], UsageRecord],
        connect: Callable[[], Connection],
    ) -> None:
        self._config = config
        self._build = build
        self._connect = connect
        self._spool: Spool | None = None
        if config.spool is not None:
            self._spool = Spool(config.spool, durability=config.durability, max_bytes=config.spool_bytes)
        self._overflow = config.overflow or ("spill" if config.spool else "drop_newest")
        # `_ended`: it is closed, or the process ends. `_dropped`: nobody is left who would record.
        self._closed = self._ended = self._dropped = False
        self._leave_by: float | None = None
        self._begin_anew()
        forget_in_children(self)
        quiesce_for_forks(self, uses_others=True)
        close_at_exit(self)

    def record(
        self, record: Recordable, fields: dict[str, object], attributes: Attributes | None = None
    ) -> None:
        """Take a record; never waits for the network. RecorderFullError where overflow is "raise".

        `fields` are the recorder's from here on; what they hold, and the record, stay the caller's.
        `attributes` say whose the call is, where that is not told by the blocks around this place.
        """
        whose = current_attributes() if attributes is None else attributes
        moment, number = time.time_ns(), next(self._numbers)
        if self._spool is not None:
            self._keep((record, fields, whose, moment, number))
            return
        kept = None if record is None else as_it_is(record)
        raw = (kept, as_they_are(fields), whose, moment, number)
        queue = self._queue
        if len(queue) + self._in_memory >= self._config.max_records or self._ended:
            self._take_anyway(raw)
        else:
            queue.append(raw)
        if self._idle:
            self._wake()

    def start(self) -> None:
        """Have the thread running, where it may not be started later."""
        if self._thread is None:
            self._wake()

    def record_abandoned(self, record: Recordable, attributes: Attributes) -> None:
        """Take a record in a finalizer, which may run while this thread holds any lock: takes none.

        It waits in memory until the thread looks up, within a second, or until `flush` or `close`.
        """
        if self._closed or self._is_full():
            self._counts.dropped += 1
        else:
            self._queue.append((record, {}, attributes, time.time_ns(), next(self._numbers)))

    def flush(self, timeout: float | None = None) -> FlushReport:
        """Wait until everything was sent, for at most so many seconds; shutdown_timeout when not given.

        A callback of the recorder's own thread does not wait: nothing would be sent meanwhile.
        """
        if self._is_sending():
            return self.report()
        seconds = self._config.shutdown_timeout if timeout is None else timeout
        until = time.monotonic() + seconds
        if self._left():
            self._wake()
        self._send_here(until)
        with self._lock:
            while self._left() and (wait := until - time.monotonic()) > 0:
                self._urgent.ring()
                self._hurry.ring()
                self._progress.wait(min(wait, 0.1))
        return self.report()

    def report(self) -> FlushReport:
        """What became of the records so far."""
        with self._lock:
            counts = self._counts
            return FlushReport(
                delivered=counts.delivered,
                duplicates=counts.duplicates,
                conflicts=counts.conflicts,
                rejected_count=counts.rejected,
                rejected=list(counts.rejects),
                spooled=0 if self._spool is None else self._spool.kept - self._done_in_spool,
                dropped=counts.dropped,
                pending=len(self._queue) + self._in_memory,
            )

    def close(self, timeout: float | None = None) -> FlushReport:
        """Send what is there, for at most so many seconds, and end. What is left in memory is dropped.

        In a callback of the recorder's own thread nothing more is sent: what is in memory is dropped at once.
        """
        if not self._closed:
            seconds = self._config.shutdown_timeout if timeout is None else timeout
            if self._leave_by is not None:
                seconds = min(seconds, max(0.0, self._leave_by - time.monotonic()))
            self.flush(seconds)
            self._closed = self._ended = True
            self._urgent.ring()
            self._hurry.ring()
            thread = self._thread
            if thread is not None and thread.is_alive() and thread is not threading.current_thread():
                # It ends at once, unless it waits for an answer.
                thread.join(_LAST_SECONDS)
            self._drop_rest()
            if thread is None or not thread.is_alive():
                self._close_spool()
                self._close_line()
            closed(self)
        return self.report()

    def close_at_exit(self, began: float) -> None:
        """Send what is there as the process ends, since `began`.

        What is recorded after that goes into the spool; without one it is sent at once, while the
        shutdown_timeout lasts.
        """
        self._leave_by = began + self._config.shutdown_timeout
        self._ended = True
        self._flush_late()

    def end_when_sent(self) -> None:
        """End once everything was sent: nobody is left who would record. May be called in a finalizer."""
        self._dropped = True
        if self._thread is not None:
            ends_soon(self._thread)
        elif self._left():
            keep_until_exit(self)
        self._hurry.ring()

    def forget(self) -> None:
        """In a forked child: what waits is the parent's to send; its spool forgets by itself."""
        self._begin_anew()

    def before_fork(self, until: float) -> None:
        """Have the first batch come through: a child would have half of each module that sending imports."""
        seconds = min(until - time.monotonic(), _FORK_SECONDS)
        self._held: bool = not self._warm and self._importing.acquire(timeout=max(seconds, 0.0))

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._held:
            self._importing.release()

    def after_fork_in_child(self) -> None:
        """Nothing is left to do after `forget`."""

    def _begin_anew(self) -> None:
        self._queue: deque[Raw] = deque()
        self._backlog: deque[_Waiting] = deque()
        self._backlog_bytes = 0
        self._in_memory = 0
        # Of the records that the spool kept, how many were settled or dropped since.
        self._done_in_spool = 0
        self._counts = Tally()
        self._numbers = count()
        self._builder = Builder(self._build, as_json=self._spool is not None)
        # Not the condition itself, whose `__enter__` may be interrupted once it has the lock.
        self._lock = threading.RLock()
        self._progress = threading.Condition(self._lock)
        self._starting = threading.RLock()
        self._hurry = Bell()
        self._urgent = Bell()
        self._thread: threading.Thread | None = None
        # Of who sends although it is not the thread.
        self._line = Line(self._connect)
        # Held for each batch, and by which thread.
        self._sending = threading.Lock()
        self._sender: threading.Thread | None = None
        self._idle = True
        self._abandoned = False
        self._importing = threading.RLock()
        self._warm: bool = False
        self._telling = Telling(self._config)

    def _close_spool(self) -> None:
        if self._spool is not None and self._leave_by is None:
            self._spool.close()

    def _left(self) -> int:
        return len(self._queue) + self._in_memory + (0 if self._spool is None else self._spool.pending)

    def _wake(self) -> None:
        self._idle = False
        self._hurry.ring()
        if self._thread is None and not self._closed:
            with self._starting:
                thread = threading.Thread(target=self._work, name="llm-cost-ops-recorder", daemon=True)
                if self._thread is None:  # a signal handler may have been faster, in this very thread
                    self._thread = thread
                    try:
                        close_in_workers()
                        thread.start()
                    except BaseException as error:
                        self._thread, self._idle = None, True
                        # The interpreter may be ending, and starts no threads any more: see `_send_here`.
                        if not isinstance(error, RuntimeError):
                            raise

    def _take_anyway(self, raw: Raw) -> None:
        """Take a record that does not fit, as `overflow` says."""
        self._urgent.ring()
        if self._closed:
            self._drop(1, "the client is closed")
        elif self._ended:
            self._queue.append(raw)
            self._flush_late()
        elif self._overflow == "raise":
            raise RecorderFullError(f"{self._config.max_records} records wait to be sent")
        elif self._overflow == "block":
            while self._is_full() and self._may_wait():
                self._wake()
                self._send_here(time.monotonic() + self._config.shutdown_timeout, batches=1)
                with self._lock:
                    if self._is_full():
                        self._progress.wait(0.1)
            with self._lock:
                if not self._abandoned:
                    self._queue.append(raw)
                    return
            self._drop(1, "the client is closed")
        elif self._overflow == "drop_oldest":
            with self._lock:
                if self._queue:
                    self._queue.popleft()
                    self._counts.dropped += 1
                self._queue.append(raw)
            self._telling.say("drop", "records are dropped: the queue is full")
        else:
            self._drop(1, "the queue is full")

    def _flush_late(self) -> None:
        """Send what is there in what is left of the process's time; drop the rest."""
        assert self._leave_by is not None
        self.flush(max(0.0, self._leave_by - time.monotonic()))
        # Before that, what is there came from another thread since, which sends it.
        if time.monotonic() >= self._leave_by and not self._is_sending() and (self._queue or self._in_memory):
            self._closed = True
            self._drop_rest()

    def _may_wait(self) -> bool:
        """Whether there will be room: the thread makes it, but not while it calls a callback that records."""
        return not self._closed and not self._is_sending()

    def _is_sending(self) -> bool:
        """Whether this thread does: in a callback, or in a signal's handler."""
        return threading.current_thread() in (self._thread, self._sender)

    def _is_full(self) -> bool:
        return len(self._queue) + self._in_memory >= self._config.max_records

    def _keep(self, raw: Raw) -> None:
        """Write a record to the spool; where that can't be, into memory."""
        built = self._builder.built(raw)
        if isinstance(built, Rejected):
            with self._lock:
                self._counts.reject(built)
            self._telling.rejected(built)
            return
        assert self._spool is not None
        record, payload = built
        while True:
            try:
                self._spool.append(payload)
            except SpoolEnteredError:
                # No lock may be waited for: another thread may have it, and wait for the spool's.
                self._queue.append((as_it_is(record), {}, Attributes(), *raw[3:]))
            except SpoolSyncError as error:
                self._telling.say("sync", f"{error.strerror}; records are kept, unless the machine fails")
            except OSError as error:
                if isinstance(error, SpoolFullError) and self._make_room():
                    continue
                self._keep_in_memory(record, len(payload), error)
                if self._ended and not self._closed:
                    self._flush_late()
            break
        if self._idle:
            self._wake()

    def _make_room(self) -> bool:
        """Whether room was made in a full spool, as `overflow` says."""
        assert self._spool is not None
        if self._overflow == "raise":
            raise RecorderFullError("the spool is full")
        if self._overflow == "drop_oldest":
            with self._lock:
                lost = self._spool.drop_oldest()
                self._done_in_spool += lost
                self._counts.dropped += lost
            self._telling.say("drop", "records are dropped: the spool is full")
            return lost > 0
        if self._overflow == "block" and self._may_wait():
            self._wake()
            self._send_here(time.monotonic() + self._config.shutdown_timeout, batches=1)
            time.sleep(0.01)
            return True
        return False

    def _keep_in_memory(self, record: UsageRecord, size: int, error: OSError) -> None:
        self._telling.say(
            "spool", f"the spool can't take records, which are kept in memory: {error.strerror}"
        )
        kept = as_it_is(record)
        assert isinstance(kept, UsageRecord)
        with self._lock:
            fits = not self._is_full() and not self._closed
            if fits:
                self._backlog.append((kept, size))
                self._backlog_bytes += size
                self._in_memory += 1
        if not fits:
            self._drop(1, "the spool is full")

    def _send_here(self, until: float, batches: float = inf) -> None:
        """Send what is there in this thread, where the recorder has none and can't start it."""
        line = self._line
        while batches and self._left() and self._may_send_here() and time.monotonic() < until:
            batches -= 1
            if not self._send_batch(line, until):
                # It failed, or another thread has what is left.
                seconds = _BACKOFF.jittered(line.failures, random.random()) if line.failures else 0.01
                time.sleep(max(0.0, min(seconds, until - time.monotonic())))
        if self._closed:  # meanwhile
            self._close_line()

    def _may_send_here(self) -> bool:
        thread = self._thread
        gone = thread is None or not thread.is_alive()
        return gone and not self._is_sending() and not self._closed

    def _close_line(self) -> None:
        """Close the line of who sends here, but not in the middle of a batch: who sends that does it then."""
        if self._sending.acquire(timeout=_LAST_SECONDS):
            try:
                self._line.close()
            finally:
                self._sending.release()

    def _send_batch(self, line: Line, until: float | None = None) -> bool:
        """Send a batch, and tell whether there was one and it came through; `line` has the error."""
        seconds = -1 if until is None else min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
        if not self._sending.acquire(timeout=seconds):
            return False
        try:
            self._sender = threading.current_thread()
            line.until = until
            settled = self._sent(line)
            self._telling.settled(settled)
        finally:
            self._sender = None
            self._sending.release()
        return bool(settled)

    def _sent(self, line: Line) -> Settled:
        """What became of the records of a batch; none where there is no batch, or `line` has the error."""
        batch: SpoolBatch | None = None
        waiting: list[_Waiting] = []
        try:
            self._build_waiting()
            batch, waiting = self._next_batch()
            line.error = None
            if not waiting:
                return []
            with contextlib.nullcontext() if self._warm else self._importing:
                settled = submitted(line, [record for record, _ in waiting])
            line.failures, self._warm = 0, True
            return self._settled(batch, waiting, settled)
        except BaseException as error:
            self._put_back(batch, waiting)
            if not isinstance(error, Exception):
                raise  # a KeyboardInterrupt
            line.error = error
            line.failures += 1
            self._telling.say(type(error).__name__, f"records can't be sent and wait: {error}")
            return []

    # What follows runs in the thread.

    def _work(self) -> None:
        with self._starting:
            if self._thread is not threading.current_thread():
                return  # who started it was interrupted
        self._telling.thread = threading.current_thread()
        line, looked = Line(self._connect), time.monotonic()
        while True:
            self._hurry.silence()
            if self._send_batch(line):
                continue
            if line.error is not None:
                self._rest(line.error, line.failures)
            elif not self._closed and (not self._dropped or self._left()):
                self._wait_for_more()
            else:
                break
            if self._spool is not None and time.monotonic() - looked > _TAKE_OVER_SECONDS:
                looked = time.monotonic()
                self._take_over()
            if self._closed:
                break
        self._close_spool()  # who closed the recorder may not have waited for this thread
        line.close()

    def _wait_for_more(self) -> None:
        """Wait for a record, for at most _IDLE_SECONDS."""
        self._idle = True
        if not self._queue:
            with self._lock:
                self._progress.notify_all()
            if self._hurry.wait(_IDLE_SECONDS):
                self._urgent.wait(_GATHER_SECONDS)
            self._urgent.silence()
        self._idle = False

    def _take_over(self) -> None:
        assert self._spool is not None
        try:
            self._spool.take_over()
        except OSError as error:
            self._telling.say("spool", f"the spool can't be read: {error.strerror}")

    def _rest(self, error: Exception, failures: int) -> None:
        """Wait before the next attempt, after so many failures in a row."""
        hint = getattr(error, "retry_after", None)
        seconds = _BACKOFF.jittered(failures, random.random()) if hint is None else _BACKOFF.hinted(hint)
        until = time.monotonic() + seconds
        while not self._closed and (left := until - time.monotonic()) > 0:
            # Woken, it builds what came meanwhile, so that its bytes are known.
            self._hurry.silence()
            self._build_waiting()
            self._hurry.wait(min(left, _IDLE_SECONDS))

    def _build_waiting(self) -> None:
        """Make records of what waits in the queue, as many as the bound in bytes allows."""
        while self._queue and self._backlog_bytes < self._config.max_bytes:
            with self._lock:
                raws = deque(self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH_RECORDS)))
                self._in_memory += len(raws)
            try:
                while raws and not self._abandoned:
                    self._build_one(raws.popleft())
            except BaseException:  # a KeyboardInterrupt
                with self._lock:
                    if not self._abandoned:
                        self._in_memory -= len(raws)
                        self._queue.extendleft(reversed(raws))
                raise

    def _build_one(self, raw: Raw) -> None:
        built = self._builder.built(raw)
        with self._lock:
            if self._abandoned:
                return  # it was counted as dropped, and that was said
            if isinstance(built, Rejected):
                self._in_memory -= 1
                self._counts.reject(built)
            else:
                record, payload = built
                self._backlog.append((record, len(payload)))
                self._backlog_bytes += len(payload)
        if isinstance(built, Rejected):
            self._telling.rejected(built)

    def _next_batch(self) -> tuple[SpoolBatch | None, list[_Waiting]]:
        with self._lock:
            taken: list[_Waiting] = []
            size = 0
            for built in islice(self._backlog, MAX_BATCH_RECORDS):
                size += built[1]
                if taken and size > MAX_BATCH_BYTES:
                    break
                taken.append(built)
            for _ in taken:
                self._backlog.popleft()
        if taken or self._spool is None:
            return None, taken
        batch = self._spool.next_batch(MAX_BATCH_RECORDS, MAX_BATCH_BYTES)
        if batch is None:
            return None, []
        return batch, [(read_record(payload), len(payload)) for payload in batch.payloads]

    def _put_back(self, batch: SpoolBatch | None, waiting: list[_Waiting]) -> None:
        if batch is not None and self._spool is not None:
            self._spool.give_back(batch)
            return
        with self._lock:
            if not self._abandoned:
                self._backlog.extendleft(reversed(waiting))

    def _settled(self, batch: SpoolBatch | None, waiting: list[_Waiting], settled: Settled) -> Settled:
        """Count the records of a batch, and give those that are to be told of."""
        records, size = len(waiting), sum(size for _, size in waiting)
        with self._lock:
            if self._abandoned and batch is None:
                return []  # they were counted as dropped, and that was said
            for record, result in settled:
                self._counts.settle(record, result)
            if batch is None:
                # Nothing is called in these lines: a finalizer that records changes the same numbers.
                self._backlog_bytes -= size
                self._in_memory -= records
            else:
                self._done_in_spool += records
                if self._spool is not None:
                    for (given, _), payload in zip(waiting, batch.payloads, strict=True):
                        if isinstance(given, str):
                            self._spool.set_aside(batch, payload)
                    self._spool.acknowledge(batch)
            self._progress.notify_all()
        self._telling.delivered()
        return settled

    def _drop(self, records: int, reason: str) -> None:
        with self._lock:
            self._counts.dropped += records
        self._telling.say("drop", f"records are dropped: {reason}")

    def _drop_rest(self) -> None:
        with self._lock:
            left = len(self._queue) + self._in_memory
            self._abandoned = True
            self._queue.clear()
            self._backlog.clear()
            self._in_memory = 0
            self._counts.dropped += left
            self._progress.notify_all()
        if left:
            _log.error("%d records were not sent before the client was closed, and are lost", left)
