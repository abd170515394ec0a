r"""The files of a spool: their form, and how they are read, whatever happened to them.

    segment  b"LCOS" version:u8 0 0 0, then frames
    frame    b"\xc0\x57\x0f\x5a" length:u32 crc32:u32 payload     (numbers are little-endian)

A segment may end within a frame, since its process or the machine died, and any of its bits may be another:
what is no frame is passed over, up to the next one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from zlib import crc32

__all__ = ["HEADER", "MAX_FRAME_BYTES", "Segment", "fault_of", "frame_of"]

MAX_FRAME_BYTES = 1024 * 1024
"""The largest payload; a longer frame is damage."""

_VERSION = 1

HEADER = b"LCOS" + bytes([_VERSION, 0, 0, 0])
"""What a segment begins with."""

_MARK = b"\xc0\x57\x0f\x5a"
_FRAME = struct.Struct("<4sII")
_READ_BYTES = 1024 * 1024


class Segment:
    """An open segment: how far it was read and acknowledged, and what is known of it."""

    __slots__ = (
        "damaged",
        "descriptor",
        "finished",
        "name",
        "read",
        "records",
        "searched",
        "size",
        "sync_error",
        "synced",
        "syncing",
        "taken",
    )

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        # Up to where it was read, and acknowledged; how many whole records lie behind that.
        self.read = self.taken = len(HEADER)
        self.size = os.fstat(descriptor).st_size
        self.records = 0
        # How many of its bytes are no frames, of those up to a place: what is read again is counted once.
        self.damaged = self.searched = 0
        # Up to where an fsync has it on disk, and why no further one can tell.
        self.synced = 0
        self.sync_error: OSError | None = None
        # Who waits for its fsync, the last of whom closes it where it is finished meanwhile.
        self.syncing = 0
        self.finished = False

    def count(self) -> int:
        """How many payloads are in it."""
        return sum(payload is not None for _, payload in self._frames(len(HEADER)))

    def next_payloads(self, max_payloads: int, max_bytes: int) -> tuple[list[bytes], list[bytes], int]:
        """The payloads that follow what was read, at least one if there is any; damage; and where they end.

        Damage that an earlier call found is not given again.
        """
        payloads: list[bytes] = []
        damage: list[bytes] = []
        size, at = 0, self.read
        for end, payload in self._frames(at):
            if payload is None:
                if at >= self.searched:
                    damage.append(os.pread(self.descriptor, end - at, at))
                    self.damaged += end - at
                    self.searched = end
            else:
                if payloads and size + len(payload) > max_bytes:
                    break
                payloads.append(payload)
                size += len(payload)
            at = end
            if len(payloads) >= max_payloads:
                break
        return payloads, damage, at

    def _frames(self, at: int) -> Iterator[tuple[int, bytes | None]]:
        """Each frame from a place on: where it ends, and its payload; None for bytes that are no frame.

        Of a segment that is written to, what is behind its size is not looked at.
        """
        buffer, start = b"", at
        while True:
            # Less than nothing is left of a file that ends within its header.
            left = max(self.size - start - len(buffer), 0)
            more = os.pread(self.descriptor, min(_READ_BYTES, left), start + len(buffer))
            buffer += more
            offset = 0
            while len(buffer) - offset >= _FRAME.size:
                mark, length, check = _FRAME.unpack_from(buffer, offset)
                end = offset + _FRAME.size + length
                if mark == _MARK and length <= MAX_FRAME_BYTES:
                    if end > len(buffer) and more:
                        break
                    payload = buffer[offset + _FRAME.size : end]
                    if len(payload) == length and crc32(payload) == check:
                        offset = end
                        yield start + offset, payload
                        continue
                # Not a frame: the next one begins at the next mark.
                found = buffer.find(_MARK, offset + 1)
                if found < 0 and more:
                    break
                offset = found if found >= 0 else len(buffer)
                yield start + offset, None
            buffer, start = buffer[offset:], start + offset
            if not more:
                if buffer:
                    yield start + len(buffer), None
                return


def frame_of(payload: bytes) -> bytes:
    """What is written of a payload."""
    return _FRAME.pack(_MARK, len(payload), crc32(payload)) + payload


def fault_of(header: bytes) -> str:
    """Why a file that begins so is no segment of ours; "" where it is one, or was cut within its header."""
    if header == HEADER[: len(header)]:
        return ""
    if header[:4] == HEADER[:4] and header[4] > _VERSION:
        return "was written by a newer version"
    return "is no segment"
