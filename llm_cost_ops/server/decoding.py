"""Requests from their bytes, within limits of time and memory.

What a message takes in memory is many times its bytes, where those were chosen for it. So a message may have
few bytes, and a batch, which may have many, is cut into its items first: they are counted before any is
decoded, and decoded one by one, outside the event loop when that takes long.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from llm_cost_ops._gen.codecs import USAGE_RECORD
from llm_cost_ops._gen.messages import BatchReceipt, UsageRecord
from llm_cost_ops._gen.methods import (
    BATCH_SUBMIT_USAGE,
    GET_ANALYTICS,
    GET_COST_SUMMARY,
    STREAM_USAGE,
)
from llm_cost_ops.rpc.context import Metadata
from llm_cost_ops.rpc.method import MessageCodec, MethodDescriptor
from llm_cost_ops.rpc.runtime import Runtime
from llm_cost_ops.rpc.status import RpcError, StatusCode, invalid_argument
from llm_cost_ops.rules.requests import MAX_BATCH
from llm_cost_ops.transports.net.headers import IDEMPOTENCY_HEADER
from llm_cost_ops.wire import DecodeError
from llm_cost_ops.wire.fields import walk
from llm_cost_ops.wire.json import decode_list_quickly, decode_quickly, is_json
from llm_cost_ops.wire.unknown import Unknown
from llm_cost_ops.wire.varint import read_varint, varint

__all__ = [
    "BATCHES",
    "INLINE_BYTES",
    "MAX_INLINE_RECEIPTS",
    "STREAMED",
    "Batch",
    "decode_json",
    "decode_protobuf",
    "is_long_answer",
    "key_of",
    "max_bytes_of",
    "too_many_bytes",
    "violation_of",
]

_UNBOUNDED_ANSWERS = frozenset({GET_COST_SUMMARY.path, GET_ANALYTICS.path})

# Decoding so many bytes may be left to the event loop: it takes a few milliseconds at the worst.
INLINE_BYTES = 16 * 1024

# As JSON they take 0.3 ms, of which another thread takes a quarter only to begin.
MAX_INLINE_RECEIPTS = 1000

# As the protos say of the field in a request.
MAX_KEY_LENGTH = 255


MAX_VALUES = 500_000
"""The most values of a batch in all, fields, labels and what is in metadata: each takes up to 200 bytes."""


class Batch(NamedTuple):
    """The field of a request that holds the items of a batch, by its name and by its number.

    `entries` counts what is in the lists and maps of an item; of these and the fields of all items there may
    be `max_values`.
    """

    field: str
    number: int
    item: MessageCodec[Any]
    max_items: int
    entries: Callable[[Any], int]
    max_values: int = MAX_VALUES


def _entries(record: UsageRecord) -> int:
    return len(record.labels) + len(record.meters) + len(record.tags)


_RECORDS = Batch("records", 1, USAGE_RECORD, MAX_BATCH, _entries)
BATCHES: dict[str, Batch] = {BATCH_SUBMIT_USAGE.path: _RECORDS}
"""The requests that may be large, by the paths of their methods."""
STREAMED: dict[str, Batch] = {
    STREAM_USAGE.path: _RECORDS._replace(max_items=sys.maxsize, max_values=sys.maxsize)
}
"""The requests of streams that are lists, by the paths of their methods: as long as their bytes allow."""


def max_bytes_of(method: MethodDescriptor[Any, Any], of_message: int, of_batch: int) -> int:
    """The bytes that a request of a method may have."""
    return max(of_message, of_batch) if method.path in BATCHES else min(of_message, of_batch)


def key_of(metadata: Metadata) -> str:
    """The idempotency key beside a request. RpcError INVALID_ARGUMENT when no record could have it."""
    key = metadata.get(IDEMPOTENCY_HEADER)
    if len(key) > MAX_KEY_LENGTH:
        rule = f"must have at most {MAX_KEY_LENGTH} characters, not {len(key)}"
        raise invalid_argument("idempotency_key", rule)
    return key


def too_many_bytes(what: str, limit: int) -> RpcError:
    """The error for more bytes than may be sent."""
    return RpcError(
        StatusCode.INVALID_ARGUMENT,
        f"{what} may have at most {limit} bytes",
        error_code="PAYLOAD_TOO_LARGE",
    )


async def decode_protobuf(
    method: MethodDescriptor[Any, Any], data: bytes, limit: int, runtime: Runtime
) -> object:
    """The request in protobuf bytes; an item of a batch may have `limit` of them. Raises DecodeError."""
    if len(data) <= INLINE_BYTES:
        # Ten thousand items take more than that.
        return method.request.decode(data)
    batch = BATCHES.get(method.path)
    if batch is None:
        return await runtime.offload(method.request.decode, data)
    return await runtime.offload(_protobuf_batch, method.request, batch, data, limit)


async def decode_json(
    codec: MessageCodec[Any], batch: Batch | None, data: bytes, limit: int, runtime: Runtime
) -> object:
    """The message in JSON; each item of a `batch` may have `limit` bytes. Raises DecodeError."""
    if len(data) <= limit:
        # At the speed of C, and in most cases the whole work.
        message = decode_quickly(codec.type, data)
        if message is not None:
            return message
    if batch is not None:
        return await runtime.offload(_json_batch, codec, batch, data, limit)
    if len(data) <= INLINE_BYTES:
        return codec.decode_json(data, unique=True)
    return await runtime.offload(partial(codec.decode_json, unique=True), data)


def is_long_answer(method: MethodDescriptor[Any, Any], response: Any, max_receipts: int) -> bool:
    """Whether an answer may take long to encode: thousands of groups, or results of a batch that are more
    than `max_receipts`, or no receipts: what is wrong with a record takes up to a hundred times as long.
    """
    if method.path == BATCH_SUBMIT_USAGE.path:
        receipt = response.data or BatchReceipt()
        return not receipt.created + receipt.duplicates == len(receipt.results) <= max_receipts
    return method.path in _UNBOUNDED_ANSWERS


def _too_many(batch: Batch) -> DecodeError:
    return DecodeError(f"must hold at most {batch.max_items:,} {batch.field}", batch.field)


def _check_values(batch: Batch, data: bytes, more: int = 0) -> None:
    if more + data.count(b",") + data.count(b"{") + data.count(b"[") > batch.max_values:
        rule = f"must have at most {batch.max_values:,} values in all: send fewer at a time"
        raise DecodeError(rule, batch.field)


def _undecoded(batch: Batch, reason: str, path: str = "") -> object:
    return batch.item.type(unknown_=Unknown(error=reason, error_field=path))


def _protobuf_batch(codec: MessageCodec[Any], batch: Batch, data: bytes, limit: int) -> object:
    found, rest = _protobuf_items(batch, data, limit)
    request = codec.decode(rest)
    _check_values(batch, data)
    # Each entry of a list or map has a tag and a length at least.
    counted = len(data) > 2 * batch.max_values
    decode = batch.item.decode
    entries, items = 0, []
    for index, (start, stop) in enumerate(found):
        if stop - start > limit:
            items.append(_undecoded(batch, f"is longer than {limit} bytes"))
            continue
        try:
            item = decode(data[start:stop])
        except DecodeError as error:
            error.within(f"{batch.field}[{index}]")
            raise
        if counted:
            entries += batch.entries(item)
            _check_values(batch, b"", entries)
        items.append(item)
    setattr(request, batch.field, items)
    return request


def _protobuf_items(batch: Batch, data: bytes, limit: int) -> tuple[list[tuple[int, int]], bytes]:
    """Where the items are, and the bytes of all other fields, at most `limit`."""
    tag = batch.number << 3 | 2
    found: list[tuple[int, int]] = []
    rest = bytearray()
    stop, end = 0, len(data)
    try:
        while stop < end:
            if data[stop] == tag:
                size, start = read_varint(data, stop + 1)
                each, stop = tag, start + size
                if stop > end:
                    raise IndexError
            else:
                each, start, stop = next(walk(data, stop, end))
            if each == tag:
                found.append((start, stop))
                if len(found) > batch.max_items:
                    raise _too_many(batch)
            else:
                rest += varint(each) + (varint(stop - start) if each & 7 == 2 else b"") + data[start:stop]
                if len(rest) > limit:
                    raise DecodeError(f"may have at most {limit} bytes beside {batch.field}")
    except IndexError:
        raise DecodeError("the data ends within a field") from None
    return found, bytes(rest)


# A text, and what is neither text nor a byte that cuts: a bracket, in a list a comma too. Nothing is tried
# twice. What may fail midway is repeated in an atomic group: before Python 3.11.5 "*+" of such ends in wrong
# places. One match goes through at most _WINDOW bytes, since no other thread runs meanwhile.
_WINDOW = 64 * 1024
_IN_TEXT = rb'[^"\\]*+(?>(?:\\.[^"\\]*+)*)'
_TEXT_REST = re.compile(_IN_TEXT, re.DOTALL)
_TO_BRACKET = re.compile(rb'(?>(?:[^"\[\]{}]++|"' + _IN_TEXT + rb'")*)', re.DOTALL)
_TO_COMMA = re.compile(rb'(?>(?:[^"\[\]{},]++|"' + _IN_TEXT + rb'")*)', re.DOTALL)
_QUOTE, _BACKSLASH, _COMMA, _CLOSING = b'"\\,]'
_HEAD = rb'[ \t\r\n]*+\{[ \t\r\n]*+"%s"[ \t\r\n]*+:[ \t\r\n]*+\['
# Bytes that are decoded at once: a third of a millisecond, in which no other thread runs.
_PIECE = 64 * 1024
# More objects in one than records have with anything in them: they would take many times as long.
_MAX_IN_PIECE = 8000
# More brackets are no batch of anything.
_MAX_BRACKETS = 2_000_000


def _json_batch(codec: MessageCodec[Any], batch: Batch, data: bytes, limit: int) -> object:
    head = re.compile(_HEAD % batch.field.encode()).match(data)
    if head is None:
        if len(data) > limit:
            raise DecodeError(f"of more than {limit} bytes must begin with {batch.field}, a list of objects")
        return codec.decode_json(data, unique=True)
    _check_values(batch, data)
    message = _in_pieces(codec, batch, data, head.end(), limit)
    if message is not None:
        return message
    items: list[Any] = []
    start = stop = head.end()
    for start, stop, last in _json_parts(data, head.end()):
        if last and not items and not data[start:stop].strip():
            break
        if len(items) == batch.max_items:
            raise _too_many(batch)
        items.append(_json_item(batch, data, start, stop, limit, len(items)))
    if len(data) - stop > limit:
        raise DecodeError(f"may have at most {limit} bytes beside {batch.field}")
    # The rest of the object, as if the batch were empty.
    request = codec.decode_json(data[: head.end()] + data[stop:], unique=True)
    setattr(request, batch.field, items)
    return request


def _in_pieces(codec: MessageCodec[Any], batch: Batch, data: bytes, at: int, limit: int) -> object:
    """The request whose items begin at `at`, many decoded at once; None where that can't tell all of it.

    It is cut in front of items that begin as the first one does, to its first colon. Where that is within a
    text or an item, one of the pieces is no list of items. Where each is one, they are the items of the
    whole: a comma between two values can be read in one way only. No item has more bytes than its piece.
    """
    size = min(limit, _PIECE)
    colon = data.find(b":", at)
    if colon < 0:
        return None
    begin = data[at : colon + 1]
    items: list[Any] = []
    while len(data) - at > size:
        cut = data.rfind(begin, at + 1, at + size)
        end = data.rfind(b",", at, cut)
        if cut < 0 or end < 0 or data[end + 1 : cut].strip(b" \t\r\n"):
            return None
        if data.count(b"{", at, end) > _MAX_IN_PIECE:
            return None
        piece = decode_list_quickly(batch.item.type, b"[%s]" % data[at:end])
        if piece is None or len(items) > batch.max_items:
            return None
        items += piece
        at = cut
    message: Any = decode_quickly(codec.type, b'{"%s":[%s' % (batch.field.encode(), data[at:]))
    last = None if message is None else getattr(message, batch.field)
    if last is None or len(items) + len(last) > batch.max_items:
        return None
    setattr(message, batch.field, items + last)
    return message


def _json_parts(data: bytes, at: int) -> Iterator[tuple[int, int, bool]]:
    """The start and end of each element of the list that begins at `at`, and whether it is the last."""
    start, depth, brackets = at, 0, 0
    while True:
        at = _after(_TO_BRACKET if depth else _TO_COMMA, data, at)
        kind = data[at - 1]
        if kind == _COMMA:
            yield start, at - 1, False
            start = at
            continue
        brackets += 1
        if brackets > _MAX_BRACKETS:
            raise DecodeError("has too many lists and objects")
        if kind in b"[{":
            depth += 1
        elif depth:
            depth -= 1
        elif kind == _CLOSING:
            yield start, at - 1, True
            return
        else:
            raise DecodeError("is malformed JSON: a } without its {")


def _after(run: re.Pattern[bytes], data: bytes, at: int) -> int:
    """The position after the next separator or bracket that is not within a text."""
    in_text = False
    while at < len(data):
        window = at + _WINDOW
        found = (_TEXT_REST if in_text else run).match(data, at, window)
        assert found is not None
        at = found.end()
        if at >= len(data):
            break
        if at == window:
            continue
        byte = data[at]
        if in_text:
            # It ends, or an escape lies across the end of the window.
            at, in_text = (at + 2, True) if byte == _BACKSLASH else (at + 1, False)
        elif byte == _QUOTE:
            # A text that does not end within the window.
            at, in_text = at + 1, True
        else:
            return at + 1
    raise DecodeError("input data was truncated")


def _json_item(batch: Batch, data: bytes, start: int, stop: int, limit: int, index: int) -> object:
    if stop - start > limit:
        return _undecoded(batch, f"is longer than {limit} bytes")
    item = data[start:stop]
    message = decode_quickly(batch.item.type, item)
    if message is not None:
        return message
    try:
        return batch.item.decode_json(item, unique=True)
    except DecodeError as error:
        if not is_json(item):
            # So it is not known where it ends, and what follows it.
            error.within(f"{batch.field}[{index}]")
            raise
        return _undecoded(batch, error.reason, error.path)


def violation_of(error: DecodeError, whole: str) -> RpcError:
    """The error for a request that can't be decoded; `whole` is what the request itself is called."""
    return invalid_argument(error.path or whole, error.reason)
