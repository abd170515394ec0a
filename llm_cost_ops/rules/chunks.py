"""How many records one message of a stream carries: the client's and the server's answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llm_cost_ops._gen.messages import UsageRecord

__all__ = ["chunks_of"]

MAX_RECORDS = 100
"""So many that gRPC's price of a message no longer shows: a stream is as fast as batches of 500."""

MAX_BYTES = 2 * 1024 * 1024
"""gRPC peers take messages of 4 MiB when nothing else is set."""

# Fifteen texts of 255 characters of four bytes, and numbers.
_PLAIN = 16 * 1024
_METADATA = 16 * 1024


def chunks_of(records: Iterable[UsageRecord]) -> Iterator[list[UsageRecord]]:
    """The records in lists of at most MAX_RECORDS that surely have at most MAX_BYTES, but for one alone."""
    chunk: list[UsageRecord] = []
    size = 0
    for record in records:
        more = _PLAIN
        if record.metadata or record.tags or record.labels or record.meters or record.unknown_:
            more += _rest(record)
        if chunk and (len(chunk) == MAX_RECORDS or size + more > MAX_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(record)
        size += more
    if chunk:
        yield chunk


def _rest(record: UsageRecord) -> int:
    """The most bytes of what has no fixed number of parts."""
    size = _METADATA if record.metadata else 0
    try:
        texts = [*record.tags, *record.labels, *record.labels.values(), *record.meters]
        size += sum(16 + 4 * len(text) for text in texts)
    except (AttributeError, TypeError):
        # Of another type: it goes no further than the embedded service, which says so.
        return size
    if record.unknown_:
        size += len(record.unknown_.binary) + sum(map(len, map(bytes, record.unknown_.json.values())))
    return size
