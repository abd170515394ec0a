"""NDJSON: streams over HTTP, a message a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_cost_ops.rpc.method import HttpRule, MethodDescriptor
from llm_cost_ops.rpc.status import invalid_argument
from llm_cost_ops.transports.net.bodies import Inflater
from llm_cost_ops.wire import DecodeError, EncodeError
from llm_cost_ops.wire.unknown import Unknown

__all__ = ["ERROR_LINE", "MEDIA_TYPE", "PAUSE", "LineSplitter", "Lines"]

MEDIA_TYPE = "application/x-ndjson"

# How the line begins that tells of an error after the head of an answer; no message begins so.
ERROR_LINE = b'{"error":'

# Stands for no line, where who cuts a body may stop for a while.
PAUSE = b""


class LineSplitter:
    """Cuts a body into lines as it comes; blank ones are left out.

    `encoding` is the Content-Encoding, as Inflater takes it: another raises ValueError, as do bytes
    that are not of the encoding, more than `max_bytes` after decompression, and over `max_blank_lines` more
    blank lines than others. Of a line of more than `limit` bytes None is given in place of the line.
    """

    def __init__(
        self,
        limit: int,
        encoding: str = "",
        *,
        max_bytes: int | None = None,
        max_blank_lines: int | None = None,
    ) -> None:
        self._inflater = Inflater(encoding)
        self.limit = limit
        self._max_bytes = max_bytes
        self._bytes = 0
        self._max_blank_lines = max_blank_lines
        self._blank_lines = 0
        self._rest = bytearray()
        self._skipping = False

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """The lines that a part of the body ends. Raises ValueError for broken compression."""
        return (line for line in self.feed_slowly(chunk) if line != PAUSE)

    def feed_slowly(self, chunk: bytes) -> Iterator[bytes | None]:
        """As `feed`, with a PAUSE after each piece: a small chunk may become much, and hold no line."""
        for piece in self._inflater.feed(chunk):
            yield from self._split(piece)
            yield PAUSE

    def end(self) -> Iterator[bytes | None]:
        """The last line, where no line break ended it. Raises ValueError for truncated compression."""
        for piece in self._inflater.end():
            yield from self._split(piece)
        if self._skipping:
            yield None
        elif self._rest.strip():
            yield bytes(self._rest)
        self._rest.clear()

    def _split(self, data: bytes) -> Iterator[bytes | None]:
        self._bytes += len(data)
        if self._max_bytes is not None and self._bytes > self._max_bytes:
            raise ValueError(f"the stream is larger than {self._max_bytes} bytes")
        *ended, rest = data.split(b"\n")
        for part in ended:
            if self._skipping:
                self._skipping = False
                yield None
                continue
            line = bytes(self._rest) + part if self._rest else part
            self._rest.clear()
            if len(line) > self.limit:
                yield None
            elif line.strip():
                self._blank_lines -= 1
                yield line
            else:
                self._count_blank()
        if not self._skipping:
            self._rest += rest
            if len(self._rest) > self.limit:
                self._rest.clear()
                self._skipping = True

    def _count_blank(self) -> None:
        self._blank_lines += 1
        if self._max_blank_lines is not None and self._blank_lines > self._max_blank_lines:
            raise ValueError(f"the stream has more than {self._max_blank_lines:,} blank lines")


class Lines:
    """How one method's messages are lines: the whole message, or the field that its rule calls the body.

    Where that field is a list, each of its elements is a line, and a line is a message with one element.
    """

    def __init__(self, method: MethodDescriptor[Any, Any]) -> None:
        if method.http is None:
            raise ValueError(f"{method.full_name} has no HTTP rule")
        rule: HttpRule = method.http
        self._request = method.request.type
        self._response = method.response.type
        self._request_field = "" if rule.body in {None, "*"} else rule.body or ""
        self._response_field = rule.response_body or ""
        self._request_codec: Any = rule.body_codec if self._request_field else method.request
        self._response_codec: Any = rule.response_codec if self._response_field else method.response
        self._many_in = _is_list(self._request, self._request_field)
        self._many_out = _is_list(self._response, self._response_field)

    def request_lines(self, request: Any) -> bytes:
        """The lines of a request, with their line breaks. RpcError INVALID_ARGUMENT when it can't be any."""
        try:
            part = getattr(request, self._request_field) if self._request_field else request
            if self._many_in:
                return b"".join([self._request_codec.encode_json(each) + b"\n" for each in part])
            return b"{}\n" if part is None else bytes(self._request_codec.encode_json(part)) + b"\n"
        except EncodeError as error:
            raise invalid_argument(error.path, error.reason, origin="client") from error

    def request(self, line: bytes | None, limit: int) -> object:
        """The request in a line; one that can't be decoded says why in its `unknown_`."""
        if line is None:
            return self._undecoded(f"is longer than {limit} bytes")
        try:
            message = self._request_codec.decode_json(line, unique=True)
        except DecodeError as error:
            return self._undecoded(error.reason, error.path)
        message = [message] if self._many_in else message
        return self._request(**{self._request_field: message}) if self._request_field else message

    def _undecoded(self, reason: str, path: str = "") -> object:
        return self._request(unknown_=Unknown(error=reason, error_field=path))

    def response_lines(self, response: Any) -> bytes:
        """The lines of a response, with their line breaks."""
        part = getattr(response, self._response_field) if self._response_field else response
        if self._many_out:
            return b"".join([self._response_codec.encode_json(each) + b"\n" for each in part])
        line: bytes = self._response_codec.encode_json(part)
        return line + b"\n"

    def response(self, line: bytes) -> object:
        """The response in a line. DecodeError when there is none."""
        message = self._response_codec.decode_json(line)
        message = [message] if self._many_out else message
        return self._response(**{self._response_field: message}) if self._response_field else message


def _is_list(message: Any, field: str) -> bool:
    return bool(field) and isinstance(getattr(message(), field), list)
