"""One gRPC call: its headers and frames, and what its answer means. The pool gives it a connection."""

from __future__ import annotations

import base64
import binascii
import math
import re
import time
from urllib.parse import unquote

from hpack import NeverIndexedHeaderTuple

from llm_cost_ops.rpc.answers import missing_answer
from llm_cost_ops.rpc.context import CallContext, Metadata, fits_header
from llm_cost_ops.rpc.method import Idempotency
from llm_cost_ops.rpc.status import (
    OVERLOADED,
    RESPONSE_TOO_LARGE,
    RpcError,
    StatusCode,
    client_closed,
    invalid_argument,
)
from llm_cost_ops.transports.grpc.connection import CallStream, StreamFailedError
from llm_cost_ops.transports.grpc.messages import (
    CODEC_HEADER,
    CODECS_HEADER,
    decode_message,
    encode_message,
    is_json,
)
from llm_cost_ops.transports.grpc.status import MAX_RETRY_DELAY, StatusDetails, read_status
from llm_cost_ops.transports.net.advice import advice
from llm_cost_ops.transports.net.bodies import BodyTooLargeError, BoundedBody
from llm_cost_ops.transports.net.headers import (
    IDEMPOTENCY_HEADER,
    REQUEST_ID_HEADER,
    STATUS_HEADER,
    encode_timeout,
    from_headers,
    retry_after,
    to_headers,
)
from llm_cost_ops.transports.serializer import Serializer, from_wire, subtype_of, to_wire
from llm_cost_ops.wire import DecodeError, EncodeError

__all__ = ["GrpcExchange"]

USER_AGENT = "llm-cost-ops"
MAX_MESSAGE = 2000

# The content types of an answer; the first is that of a request.
_PROTOBUF = ("application/grpc", "application/grpc+proto")
_JSON = ("application/grpc+json", *_PROTOBUF)

_SUCCESSES = ("200", "201")

# What an answer that is not gRPC's means, by its HTTP status.
_HTTP = {
    400: StatusCode.INTERNAL,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.UNIMPLEMENTED,
    429: StatusCode.UNAVAILABLE,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.UNAVAILABLE,
}

# A server that failed so may have got far enough.
_UNSURE = frozenset(
    (
        StatusCode.CANCELLED,
        StatusCode.UNKNOWN,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
    )
)

_UNAVAILABLE = str(StatusCode.UNAVAILABLE.value)

# How gRPC's libraries (C, Go, Java, .NET) put it that a message has too many bytes for the server. Gateways
# say of a rate that it exceeds a maximum.
_TOO_LARGE = re.compile(r"message (after decompression )?(larger than max|exceeds (the )?maximum)")

Headers = list[tuple[bytes, bytes]]


def _statuses(*codes: StatusCode) -> frozenset[str]:
    """Codes as `grpc-status` has them."""
    return frozenset(str(code.value) for code in codes)


_KEY, _ID = IDEMPOTENCY_HEADER.encode(), REQUEST_ID_HEADER.encode()
_IN_JSON, _TAKES_JSON = (CODEC_HEADER.encode(), b"json"), (CODECS_HEADER.encode(), b"json")
_NOT_OF_THE_APPLICATION = (b":", b"grpc-", _TAKES_JSON[0])

# The statuses with which servers that know no JSON refuse it. After the second ones a call may have been
# carried out all the same, where not the server but something before it answered so; a stream has none yet.
_NOT_UNDERSTOOD = _statuses(StatusCode.INVALID_ARGUMENT, StatusCode.UNIMPLEMENTED)
_FAILED = _statuses(StatusCode.INTERNAL, StatusCode.UNKNOWN) | {""}
_TOO_MUCH = _statuses(StatusCode.INVALID_ARGUMENT, StatusCode.RESOURCE_EXHAUSTED)


class GrpcExchange:
    """A call as one HTTP/2 stream, or as several where the server did not touch the first ones.

    `limit` bounds the response message in bytes, after decompression. Without a `serializer` messages
    are protobuf, or with `json` mostly JSON; `takes_json` is what the answer told of that: the server takes
    it, refused it, or None for neither.
    """

    takes_json: bool | None = None
    begun = False
    """Whether the call can't be sent again here, though the server touched nothing."""

    def __init__(
        self,
        scheme: str,
        authority: str,
        request: object,
        context: CallContext,
        limit: int,
        serializer: Serializer | None = None,
        *,
        json: bool = False,
    ) -> None:
        context.check_deadline()
        self._serializer = serializer
        self.json = json and serializer is None
        self._context = context
        self._limit = limit
        self._safe = context.method.idempotency is Idempotency.NO_SIDE_EFFECTS
        self._scheme = scheme.encode()
        self._authority = authority
        self._sent = False
        self._deadline = None if context.deadline is None else time.monotonic() + (context.remaining() or 0.0)
        self._metadata = Metadata()
        self._status = self._words = ""
        self._details = b""
        self._message: bytes | None = None
        self._too_large = False
        # Whether an attempt before may have been carried out.
        self._unsure = False
        self._request = request
        self._frame = self._framed(request)

    def _framed(self, request: object, max_json: float = math.inf) -> bytes:
        """The message with its head; as JSON where that has at most so many bytes."""
        codec = self._context.method.request
        try:
            if self._serializer is None:
                payload = encode_message(codec, request, json=self.json)
                if len(payload) > max_json and self.json:
                    payload = codec.encode(request)
            else:
                payload = to_wire(self._serializer, codec.encode_json(request))
        except EncodeError as error:
            raise invalid_argument(error.path, error.reason, origin="client") from error
        return b"\x00" + len(payload).to_bytes(4, "big") + payload

    @property
    def _kinds(self) -> tuple[str, ...]:
        if self._serializer is not None:
            return f"application/grpc+{subtype_of(self._serializer)}", "application/grpc"
        return _JSON if self.json else _PROTOBUF

    def write_in(self, *, json: bool) -> None:
        """Write the messages as JSON or as protobuf, whatever they were written in before."""
        json = json and self._serializer is None and not self._too_large
        self.takes_json = None
        if json != self.json:
            self.json = json
            self._frame = self._framed(self._request)

    def seconds_left(self) -> float | None:
        """What is left until the deadline, never negative."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def connect_timeout(self) -> float | None:
        """Seconds for a connect, where that is less than what is left."""
        route = self._context.route
        return None if route is None else route.connect_timeout

    @property
    def deadline(self) -> float:
        """When the call is over, as time.monotonic() has it; infinite without a deadline."""
        return math.inf if self._deadline is None else self._deadline

    def headers(self) -> Headers:
        """The head of the request: what other calls have too, then what is this one's own."""
        context = self._context
        lasting = [
            (b":method", b"POST"),
            (b":scheme", self._scheme),
            (b":path", context.method.path.encode()),
            (b":authority", self._authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", self._kinds[0].encode()),
            (b"user-agent", (context.metadata.get("user-agent") or USER_AGENT).encode()),
        ]
        if self.json:
            lasting.append(_IN_JSON)
        passing: Headers = []
        left = self.seconds_left()
        if left is not None:
            passing.append(NeverIndexedHeaderTuple(b"grpc-timeout", encode_timeout(max(left, 1e-9)).encode()))
        key = context.idempotency_key
        if key and fits_header(key):
            passing.append(NeverIndexedHeaderTuple(_KEY, key.encode()))
        if context.request_id and context.request_id != key:
            passing.append(NeverIndexedHeaderTuple(_ID, context.request_id.encode()))
        if len(context.metadata):
            own = {_IN_JSON[0], *(name for name, _ in lasting), *(name for name, _ in passing)}
            given = [(name.encode(), value.encode()) for name, value in to_headers(context.metadata)]
            lasting += [pair for pair in given if pair[0] not in own and not pair[0].startswith(b"grpc-")]
        return lasting + passing

    async def run(self, stream: CallStream) -> None:
        """Send the request and read the answer. Raises StreamFailedError, or RpcError for no gRPC."""
        self._sent = False
        await self._send(stream)
        encoding = await self._begin(stream)
        if encoding is not None:
            self._message = await self._read_message(stream, encoding)
            if self._message is not None and await stream.read(1):
                raise self._malformed("it has more than one message")
            self._take(await stream.read_trailers())
        if self.json and self._status not in {"", "0"}:
            self._check_codec()

    def _check_codec(self) -> None:
        """Raise StreamFailedError where a call that went as JSON is to go as protobuf."""
        failed = self._repeatable and self._status in _FAILED
        too_much = self._repeatable and self._status in _TOO_MUCH
        if too_much and self._failed().error_code == "PAYLOAD_TOO_LARGE":
            raise self._too_much_json(unsure=self._status not in _NOT_UNDERSTOOD)
        if not self.takes_json and (failed or self._status in _NOT_UNDERSTOOD):
            # A stream has no status yet, and a server that could not read its requests did nothing.
            self._unsure = self._unsure or (failed and self._status != "")
            raise self._no_json()

    @property
    def _repeatable(self) -> bool:
        context = self._context
        return bool(context.idempotency_key) or context.method.idempotency is not Idempotency.UNKNOWN

    def _too_much_json(self, *, unsure: bool) -> StreamFailedError:
        """What has the call sent again as protobuf, which takes fewer bytes."""
        self._too_large = True
        self._unsure = self._unsure or unsure
        return StreamFailedError("as JSON the messages have too many bytes", processed=False)

    def _no_json(self) -> StreamFailedError:
        self.takes_json = False
        return StreamFailedError("the server takes no JSON", processed=False)

    async def _send(self, stream: CallStream) -> None:
        try:
            try:
                await stream.send(self._frame, end=True)
            finally:
                self._sent = stream.request_sent
        except Exception:
            # A server may answer without having read all, and then reset the stream.
            if not stream.answered:
                raise

    async def _begin(self, stream: CallStream) -> str | None:
        """Read the head of the answer: how its messages are compressed, or None when it is its end too."""
        head = self._take(await stream.read_headers())
        self._check_head(head)
        if self._status:
            return None
        return head.get(b"grpc-encoding", b"identity").decode("latin-1")

    def _check_head(self, head: dict[bytes, bytes]) -> None:
        status = head.get(b":status", b"").decode("latin-1")
        kind = head.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip()
        if status == "200" and kind in self._kinds:
            return
        if status == "415" and self.json:
            raise self._no_json()
        if self._status:
            return  # what a gateway says in gRPC's words counts
        if status == "200":
            raise self._malformed(f"its content type is {kind[:100]!r}")
        code = _HTTP.get(int(status) if status.isdecimal() else 0, StatusCode.UNKNOWN)
        raise self._refused(
            code, f"the server answered with HTTP {status[:10]}, not with gRPC", StatusDetails()
        )

    async def _read_message(self, stream: CallStream, encoding: str) -> bytes | None:
        head = await stream.read(5)
        if not head:
            return None
        if len(head) < 5 or head[0] > 1:
            raise self._malformed("it is not framed as gRPC")
        size = int.from_bytes(head[1:], "big")
        if size > self._limit:
            raise self._too_large_answer(f"the message of {size} bytes is larger than {self._limit} bytes")
        data = await stream.read(size)
        if len(data) < size:
            raise self._malformed("the message is cut off")
        return self._inflated(data, encoding) if head[0] else data

    def _inflated(self, data: bytes, encoding: str) -> bytes:
        if encoding not in {"gzip", "deflate"}:
            raise self._malformed(f"it is compressed in a way that was not asked for ({encoding[:40]!r})")
        try:
            body = BoundedBody(self._limit, encoding)
            body.feed(data)
            return body.whole()
        except BodyTooLargeError as error:
            raise self._too_large_answer(str(error)) from error
        except ValueError as error:
            raise self._malformed(str(error)) from error

    def _too_large_answer(self, reason: str) -> Exception:
        if self.json and self._repeatable and not self.begun:
            return self._too_much_json(unsure=True)
        return self._malformed(reason, code=RESPONSE_TOO_LARGE)

    def _take(self, headers: Headers) -> dict[bytes, bytes]:
        """Keep what a block of headers says: the status, and the metadata of the application."""
        received = dict(headers)
        self._status = received.get(b"grpc-status", b"").decode("latin-1")
        words = received.get(b"grpc-message")
        self._words = "" if words is None else unquote(words.decode("latin-1"), errors="replace")
        self._details = received.get(b"grpc-status-details-bin", b"")
        pushback = received.get(b"grpc-retry-pushback-ms")
        self._pushback = None if pushback is None else _milliseconds(pushback)
        if _TAKES_JSON in headers:
            self.takes_json = True
        if given := _application(headers):
            for name, value in from_headers(given):
                try:
                    self._metadata.add(name, value)
                except ValueError:
                    break  # more than metadata may hold
        self._context.response_metadata = self._metadata
        return received

    def finish(self) -> object:
        """The response message. RpcError when the server told an error, or nothing that can be understood."""
        context, method = self._context, self._context.method
        if self._status != "0":
            raise self._failed()
        if self._message is None:
            raise self._malformed("it is a success without a message")
        response = self._decoded(self._message)
        body = self._message if self.json and is_json(self._message) else None
        if missing := missing_answer(method, self._request, response, body):
            raise self._malformed(missing)
        status = self._metadata.get(STATUS_HEADER)
        context.response_status = int(status) if status in _SUCCESSES else method.success_status
        context.request_id = self._metadata.get(REQUEST_ID_HEADER) or context.request_id
        return response

    def _decoded(self, message: bytes) -> object:
        codec = self._context.method.response
        try:
            if self._serializer is None:
                return decode_message(codec, message, json=self.json)
            return codec.decode_json(from_wire(self._serializer, message))
        except DecodeError as error:
            raise self._malformed(f"the response {error}") from error

    def _failed(self) -> RpcError:
        number = int(self._status) if self._status.isdecimal() and len(self._status) < 9 else -1
        if number == -1:
            return self._malformed("it has no status")
        code = StatusCode(number) if number in StatusCode.__members__.values() else StatusCode.UNKNOWN
        if code is StatusCode.CANCELLED and not self._details and self._words in {"", code.name}:
            # Nobody here cancelled: so grpcio ends calls that reach it while it goes away.
            return self.failure(StreamFailedError("the server cancelled the call"))
        details = read_status(_from_base64(self._details))
        if code is StatusCode.RESOURCE_EXHAUSTED and not self._details and _TOO_LARGE.search(self._words):
            # Another attempt would be as large: it is no limit of a rate.
            code, details.error_code = StatusCode.INVALID_ARGUMENT, "PAYLOAD_TOO_LARGE"
        return self._refused(code, self._words, details)

    @property
    def refused(self) -> bool:
        """Whether the server had too many calls, and did nothing with this one."""
        return self._status == _UNAVAILABLE and self._failed().is_refusal

    def _refused(self, code: StatusCode, message: str, details: StatusDetails) -> RpcError:
        hint = self._pushback if self._pushback is not None else details.retry_after
        if hint is None:
            hint = retry_after(self._metadata.get("retry-after"), self._context.runtime.now())
        return RpcError(
            code,
            message[:MAX_MESSAGE] or f"the server answered with {code.name}",
            violations=details.violations,
            retry_after=hint,
            maybe_applied=not self._safe
            and (self._unsure or (code in _UNSURE and details.error_code != OVERLOADED)),
            error_code="" if details.error_code.upper() == code.name else details.error_code,
            request_id=self._request_id(details.request_id),
            metadata=self._metadata,
        )

    def _malformed(self, reason: str, code: str = "") -> RpcError:
        return RpcError(
            StatusCode.INTERNAL,
            f"the answer can't be understood: {reason}",
            maybe_applied=not self._safe,
            request_id=self._request_id(),
            metadata=self._metadata,
            error_code=code,
        )

    def _request_id(self, received: str = "") -> str:
        return received or self._metadata.get(REQUEST_ID_HEADER) or self._context.request_id

    def out_of_time(self) -> RpcError:
        """The deadline passed."""
        return RpcError(
            StatusCode.DEADLINE_EXCEEDED,
            f"the deadline of {self._context.method.name} passed",
            origin="client",
            maybe_applied=(self._sent or self._unsure) and not self._safe,
            request_id=self._context.request_id,
        )

    def closed(self) -> RpcError:
        """The client was closed meanwhile."""
        return client_closed(maybe_applied=(self._sent or self._unsure) and not self._safe)

    def failure(self, error: Exception) -> RpcError:
        """What an exception of grpclib, h2, ssl, asyncio or the socket means."""
        left = self.seconds_left()
        # A server cancels what is late by its own clock, which may be a moment ahead.
        if left is not None and left <= 0.01 and isinstance(error, TimeoutError | StreamFailedError):
            return self.out_of_time()
        untouched = isinstance(error, StreamFailedError) and not error.processed
        reason = str(error) or type(error).__name__
        hint = advice("grpcs" if self._scheme == b"https" else "grpc", reason)
        return RpcError(
            StatusCode.UNAVAILABLE,
            f"no answer from {self._authority}: {reason}{hint}",
            origin="network",
            maybe_applied=not self._safe and (self._unsure or (self._sent and not untouched)),
            request_id=self._context.request_id,
            error_code=RpcError.code_of_cause(error),
        )


def _application(headers: Headers) -> Headers:
    return [pair for pair in headers if not pair[0].startswith(_NOT_OF_THE_APPLICATION)]


def _from_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""


def _milliseconds(text: bytes) -> float:
    """A pushback in seconds; -1, which forbids a retry, where it is negative or nothing."""
    if not text.isdigit() or len(text) > 15:
        return -1.0
    return min(int(text) / 1000, MAX_RETRY_DELAY)
