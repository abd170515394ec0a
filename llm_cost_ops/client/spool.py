"""A folder that keeps records until a server has them.

A record that was appended is sent at least once, and counts once, since it carries its idempotency key. It
lies as JSON in a segment, a file that only its process appends to; spool_segment.py has its form. No
credentials are in it. A process holds a lock on its segments as long as it lives, so that another one can
tell those of the dead and send them. A segment is deleted once everything in it was acknowledged.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import threading
import time
from pathlib import Path

import msgspec

from llm_cost_ops.client.spool_segment import HEADER, MAX_FRAME_BYTES, Segment, fault_of, frame_of
from llm_cost_ops.rpc.context import uuid7
from llm_cost_ops.rpc.forks import forget_in_children, quiesce_for_forks

__all__ = [
    "MAX_FRAME_BYTES",
    "Spool",
    "SpoolBatch",
    "SpoolEnteredError",
    "SpoolError",
    "SpoolFullError",
    "SpoolStatus",
    "SpoolSyncError",
]

_SUFFIX = ".segment"
# Of a segment that its process has not locked yet; when that ended before it did, the file is empty for good.
_UNLOCKED = ".segment.new"
_ABANDONED = 3600.0  # seconds
# A segment of ours is an open file, of which a process may often have 1,024: a full spool is about so many
# segments, and of those of the dead no more are taken over at a time.
_MAX_SEGMENTS = 64

_log = logging.getLogger("llm_cost_ops.recorder")


class SpoolError(OSError):
    """The folder can't be used."""


class SpoolFullError(SpoolError):
    """The bound in bytes is reached, or the disk is full: the record was not kept."""


class SpoolEnteredError(SpoolError):
    """A signal handler or a finalizer appends in the middle of an append of its thread: it was not kept."""


class SpoolSyncError(SpoolError):
    """The fsync failed: the record was kept and will be sent, but may be lost when the machine fails."""


class SpoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in a folder: segments, their bytes, and whole records that are not acknowledged."""

    segments: int
    records: int
    bytes: int
    damaged_bytes: int


class SpoolBatch(msgspec.Struct, kw_only=True):
    """Records on their way; `acknowledge` says that a server has them."""

    payloads: list[bytes]
    segment: str
    end: int


class Spool:
    """A folder of segments. Safe for threads; several processes may share the folder.

    `append` returns once a record survives the end of the process (durability "process") or of the machine
    ("disk": the fsync is shared by all that wait for it). The folder, 0700, is made where it is missing, and
    its files are 0600. Raises SpoolError for a folder that can't be used: a link, somebody else's, or
    read-only.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        durability: str = "process",
        max_bytes: int = 256 * 1024 * 1024,
        segment_bytes: int = 0,
    ) -> None:
        if durability not in ("process", "disk"):
            raise ValueError(f"durability must be 'process' or 'disk', not {durability!r}")
        self.folder = Path(folder)
        self._sync = durability == "disk"
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes or max(max_bytes // _MAX_SEGMENTS, 4 * 1024 * 1024)
        self._directory = _open_folder(self.folder, sync=self._sync)
        self._lock = threading.RLock()
        self._fsync = threading.RLock()
        self._reading = threading.RLock()
        self._entered = False
        self._current: Segment | None = None
        self._segments: list[Segment] = []
        self._more = False  # whether segments of the dead may be left, since there were too many at once
        self._bytes = 0
        # How many records were appended or taken over, in all; with whole records and their bytes it
        # changes before the size does, up to which others read.
        self.kept = 0
        self._emptied: set[str] = set()  # could not be deleted: the next process tries again
        # Every file that is open here, since a child that keeps one keeps its lock; none is opened or closed
        # in the middle of a fork.
        self._opening = threading.RLock()
        self._descriptors: set[int] = set()
        forget_in_children(self)
        quiesce_for_forks(self)
        try:
            self.take_over()
        except BaseException:
            self.close()
            raise

    def append(self, payload: bytes) -> None:
        """Keep a record.

        Raises SpoolSyncError when it was kept and only its fsync failed; SpoolFullError, SpoolEnteredError,
        or another SpoolError when the disk fails: then it was not kept.
        """
        if len(payload) > MAX_FRAME_BYTES:
            raise SpoolError(
                errno.EMSGSIZE, f"a record has {len(payload)} bytes, more than {MAX_FRAME_BYTES}"
            )
        frame = frame_of(payload)
        size = len(frame)
        with self._lock:
            if self._entered:
                raise SpoolEnteredError(errno.EDEADLK, "this thread is in the middle of another append")
            if self._bytes + size > self._max_bytes:
                raise SpoolFullError(errno.ENOSPC, f"the spool {self.folder} holds {self._bytes} bytes")
            self._entered, kept, segment = True, False, None
            try:
                segment = self._current
                if segment is None or segment.size >= self._segment_bytes:
                    segment = self._begin_segment()
                written = os.write(segment.descriptor, frame)
                if written != size:
                    raise SpoolFullError(errno.ENOSPC, f"no space left for the spool {self.folder}")
                self.kept += 1
                self._bytes += size
                segment.records += 1
                segment.size = end = segment.size + size
                if self._sync:
                    segment.syncing += 1
                kept = True
            except OSError as error:
                raise _full(error) from error
            finally:
                self._entered = False
                if not kept and segment is not None:
                    self._cut(segment)
        if self._sync:
            try:
                self._sync_to(segment, end)
            finally:
                with self._lock:
                    segment.syncing -= 1
                    if segment.finished:
                        self._close(segment)

    def next_batch(self, max_records: int, max_bytes: int) -> SpoolBatch | None:
        """Records that no batch has yet, the oldest segment first; None when there are none.

        What is damaged is logged, kept beside the segment as *.damaged, and passed over.
        """
        if self._more and len(self._segments) <= _MAX_SEGMENTS // 2:
            self.take_over()
        with self._reading:
            for segment in list(self._segments):
                payloads, damage, end = segment.next_payloads(max_records, max_bytes)
                for each in damage:
                    self._keep_damage(segment.name, each)
                if payloads:
                    segment.read = end
                    return SpoolBatch(payloads=payloads, segment=segment.name, end=end)
                # Only damage was found: nobody will acknowledge it.
                if segment.taken == segment.read:
                    segment.taken = end
                segment.read = max(segment.read, end)
                self._finish(segment)
        return None

    def acknowledge(self, batch: SpoolBatch) -> None:
        """Say that a server has a batch. Batches of a segment are acknowledged in their order."""
        records = len(batch.payloads)
        with self._reading:
            segment = self._find(batch.segment)
            if segment is not None:
                with self._lock:
                    segment.taken = batch.end
                    # Nothing is called here: a finalizer that records would have its record not counted.
                    segment.records -= records
                self._finish(segment)

    def set_aside(self, batch: SpoolBatch, payload: bytes) -> None:
        """Keep what is no record, though it came as it was written, beside its segment as *.damaged."""
        segment = self._find(batch.segment)
        if segment is not None:
            segment.damaged += len(payload)
        self._keep_damage(batch.segment, payload)

    def give_back(self, batch: SpoolBatch) -> None:
        """Have a batch read again: it was not delivered."""
        segment = self._find(batch.segment)
        if segment is not None:
            segment.read = segment.taken

    def drop_oldest(self) -> int:
        """Delete the oldest segment and tell how many records were lost with it; 0 when there is none."""
        with self._reading:
            # Not one of which a batch is on its way.
            resting = (segment for segment in list(self._segments) if segment.read == segment.taken)
            segment = next(resting, None)
            if segment is None:
                return 0
            return self._finish(segment, unsent=True)

    def take_over(self) -> int:
        """Make segments of dead processes ours to send, and tell how many records they hold.

        When there are many, the others follow as these are sent. Where ours were deleted, new ones are begun.
        """
        self._find_deleted()
        self._more, found = False, 0
        for name in self._others():
            if len(self._segments) >= _MAX_SEGMENTS:
                self._more = True
                break
            segment = self._adopt(name)
            if segment is not None:
                with self._lock:
                    self._segments.append(segment)
                    self._bytes += segment.size
                    self.kept += segment.records
                found += segment.records
        return found

    def _find_deleted(self) -> None:
        with self._lock:
            segment = self._current
            if segment is not None and os.fstat(segment.descriptor).st_nlink == 0:
                self._current = None
                _log.error("the spool's %s was deleted: it is lost when this process ends", segment.name)
        if os.fstat(self._directory).st_nlink == 0:
            folder = _open_folder(self.folder, sync=self._sync)
            os.dup2(folder, self._directory, inheritable=False)
            os.close(folder)

    def _others(self) -> list[str]:
        """The segments that are not ours yet, the oldest first."""
        with self._lock:
            known = self._emptied.union(segment.name for segment in self._segments)
        names = sorted(os.listdir(self._directory))  # noqa: PTH208  # the folder that was opened, not its path
        for name in names:
            if name.endswith(_UNLOCKED):
                with contextlib.suppress(OSError):
                    made = os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_mtime
                    if time.time() - made > _ABANDONED:
                        os.unlink(name, dir_fd=self._directory)
        return [name for name in names if name.endswith(_SUFFIX) and name not in known]

    def status(self) -> SpoolStatus:
        """What this process has to send: its own segments, and those of the dead."""
        with self._lock:
            segments, records, size = len(self._segments), self.pending, self._bytes
            damaged = sum(segment.damaged for segment in self._segments)
        for name in self._others() if self._more else ():
            segment = self._adopt(name)
            if segment is not None:
                segments, records, size = segments + 1, records + segment.records, size + segment.size
                self._let_go(segment.descriptor)
        return SpoolStatus(segments=segments, records=records, bytes=size, damaged_bytes=damaged)

    @property
    def pending(self) -> int:
        """How many whole records are not acknowledged."""
        return sum(segment.records for segment in self._segments)

    def close(self) -> None:
        """Let go of every file; what is not acknowledged is there for the next process."""
        with self._lock:
            segments, self._segments, self._current = self._segments, [], None
            if self._directory < 0:
                return
            for segment in segments:
                if segment.taken >= segment.size:
                    self._delete(segment)
                self._close(segment)
            os.close(self._directory)
            self._directory = -1

    def forget(self) -> None:
        """In a forked child: the segments are the parent's, whose locks the child's copies would keep."""
        descriptors, self._descriptors = self._descriptors, set()
        self._segments, self._current, self._bytes, self.kept = [], None, 0, 0
        self._entered = False
        self._lock, self._fsync, self._reading = threading.RLock(), threading.RLock(), threading.RLock()
        self._opening = threading.RLock()
        for descriptor in descriptors:
            # A lock of flock belongs to the open file, which both have: closing the copy releases nothing.
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def before_fork(self, until: float) -> None:
        """Have no file half opened: the child would not know that it has it."""
        self._held = self._opening.acquire(timeout=max(until - time.monotonic(), 0.0))

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._held:
            self._opening.release()

    def after_fork_in_child(self) -> None:
        """Nothing is left to do after `forget`."""

    def _open(self, name: str, flags: int) -> int:
        with self._opening:
            flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=self._directory)
            self._descriptors.add(descriptor)
            return descriptor

    def _let_go(self, descriptor: int) -> None:
        with self._opening, contextlib.suppress(OSError):
            self._descriptors.discard(descriptor)
            os.close(descriptor)

    def _close(self, segment: Segment) -> None:
        """Let go of a segment's file, once nobody waits for its fsync. The lock is held."""
        segment.finished = True
        if not segment.syncing:
            self._let_go(segment.descriptor)

    def _begin_segment(self) -> Segment:
        made = uuid7()
        # It gets its name once it is locked, lest another process takes it for one of the dead.
        name, unlocked = f"{made}{_SUFFIX}", f"{made}{_UNLOCKED}"
        try:
            descriptor = self._open(unlocked, os.O_CREAT | os.O_EXCL | os.O_APPEND)
        except OSError as error:
            raise _full(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.write(descriptor, HEADER) != len(HEADER):
                raise SpoolFullError(errno.ENOSPC, f"no space left for the spool {self.folder}")
            os.rename(unlocked, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            if self._sync:
                os.fsync(self._directory)
        except OSError as error:
            self._let_go(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(unlocked, dir_fd=self._directory)
            raise _full(error) from error
        self._current = segment = Segment(name, descriptor)
        self._segments.append(segment)
        self._bytes += segment.size
        return segment

    def _cut(self, segment: Segment) -> None:
        # What was written of a frame is damage, or was interrupted: the next record begins a new segment.
        with contextlib.suppress(OSError):
            os.ftruncate(segment.descriptor, segment.size)
        self._current = None

    def _sync_to(self, segment: Segment, end: int) -> None:
        """Have a segment on disk up to a place; who waits here meanwhile is done with the same fsync."""
        with self._fsync:
            if segment.taken >= end or segment.synced >= end:
                return
            if segment.sync_error is None:
                size = segment.size
                try:
                    os.fdatasync(segment.descriptor)
                except OSError as error:
                    # The next fsync of this file may succeed without what this one lost: nothing more is
                    # written to it, and who waits for it is told the same.
                    segment.sync_error = error
                    with self._lock:
                        if segment is self._current:
                            self._current = None
                else:
                    segment.synced = size
                    return
            reason = segment.sync_error
            raise SpoolSyncError(reason.errno, f"the spool can't be synced: {reason.strerror}") from reason

    def _adopt(self, name: str) -> Segment | None:
        try:
            descriptor = self._open(name, 0)
        except OSError as error:
            if error.errno != errno.ENOENT:
                _log.warning("the spool's %s can't be opened and is left alone: %s", name, error.strerror)
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            header = os.pread(descriptor, len(HEADER), 0)
            # Another process may have sent and deleted it between the look at the folder and the lock.
            gone = os.fstat(descriptor).st_nlink == 0
        except OSError:
            gone = True
        if gone or not self._is_ours(name, header):
            self._let_go(descriptor)
            return None
        segment = Segment(name, descriptor)
        try:
            segment.records = segment.count()
        except OSError:
            # Locked by nobody it is found again, once it can be read.
            self._let_go(descriptor)
            raise
        return segment

    def _is_ours(self, name: str, header: bytes) -> bool:
        fault = fault_of(header)
        if not fault:
            return True
        _log.error("the spool's %s %s, and is set aside as %s.damaged", name, fault, name)
        with contextlib.suppress(OSError):
            os.rename(name, f"{name}.damaged", src_dir_fd=self._directory, dst_dir_fd=self._directory)
        return False

    def _keep_damage(self, name: str, damage: bytes) -> None:
        _log.error("%d bytes of the spool's %s are damaged, and set aside", len(damage), name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            aside = os.open(f"{name}.damaged", flags, 0o600, dir_fd=self._directory)
            with os.fdopen(aside, "wb", buffering=0) as file:
                file.write(damage)

    def _find(self, name: str) -> Segment | None:
        with self._lock:
            return next((segment for segment in self._segments if segment.name == name), None)

    def _finish(self, segment: Segment, *, unsent: bool = False) -> int:
        """Delete a segment of which nothing is left to send, or one with what is `unsent`, and count that."""
        with self._lock:
            # Looked at again: a record may have come in the meantime.
            if segment not in self._segments or (segment.taken < segment.size and not unsent):
                return 0
            if segment is self._current:
                self._current = None
            self._segments.remove(segment)
            self._bytes -= segment.size
            self._delete(segment)
            self._close(segment)
            return segment.records

    def _delete(self, segment: Segment) -> None:
        """Delete a segment; where that can't be, empty it, lest it is sent again. The lock is held."""
        try:
            os.unlink(segment.name, dir_fd=self._directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._emptied.add(segment.name)
            _log.warning("the spool's %s can't be deleted, and is emptied: %s", segment.name, error.strerror)
            with contextlib.suppress(OSError):
                os.ftruncate(segment.descriptor, len(HEADER))


def _open_folder(folder: Path, *, sync: bool) -> int:
    try:
        _make_folder(folder, 0o700, sync=sync)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SpoolError(error.errno, f"the spool {folder} can't be used: {error.strerror}") from error
    facts = os.fstat(descriptor)
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o022:
        os.close(descriptor)
        raise SpoolError(
            errno.EPERM, f"the spool {folder} must belong to this user, and nobody else may write there"
        )
    return descriptor


def _make_folder(folder: Path, mode: int, *, sync: bool) -> None:
    """Make a folder, and those above it that are missing; with `sync` all their names are on disk then.

    Where a folder may not be read, or its kind of file system has no such call, its names can't be synced.
    """
    if not folder.is_dir():
        _make_folder(folder.parent, 0o777, sync=sync)
        folder.mkdir(mode, exist_ok=True)
    if sync:
        try:
            above = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(above)
            finally:
                os.close(above)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EINVAL):
                raise


def _full(error: OSError) -> OSError:
    if isinstance(error, SpoolError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SpoolFullError(error.errno, f"no space left for the spool: {error.strerror}")
    return SpoolError(error.errno, f"the spool can't be written: {error.strerror}")
