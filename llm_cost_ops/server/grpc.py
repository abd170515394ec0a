"""The service over gRPC, on grpcio: our codecs, its HTTP/2 and its limits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio

from llm_cost_ops.rpc.context import CallContext, Metadata, uuid7
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.method import Cardinality, MethodDescriptor
from llm_cost_ops.rpc.runtime import AsyncRuntime, Runtime
from llm_cost_ops.rpc.slices import Slices
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.server.admission import Admission, overloaded
from llm_cost_ops.server.app import (
    ServerTls,
    private_sockets,
    remove_socket,
    remove_stale_socket,
    tcp_listener,
)
from llm_cost_ops.server.calls import CallObserver, OpenCalls, Traffic
from llm_cost_ops.server.decoding import (
    BATCHES,
    MAX_INLINE_RECEIPTS,
    STREAMED,
    decode_json,
    decode_protobuf,
    is_long_answer,
    key_of,
    max_bytes_of,
    too_many_bytes,
    violation_of,
)
from llm_cost_ops.server.limits import BACKLOG, GrpcLimits
from llm_cost_ops.server.reflection import SERVICES as REFLECTION_SERVICES
from llm_cost_ops.server.reflection import DescriptorImage, ReflectionHandler
from llm_cost_ops.service.failures import log_failure
from llm_cost_ops.transports.grpc.messages import CODEC_HEADER, CODECS_HEADER, encode_message, is_json
from llm_cost_ops.transports.grpc.status import fields_of, number, write_status
from llm_cost_ops.transports.net.headers import (
    REQUEST_ID_HEADER,
    STATUS_HEADER,
    is_request_id,
)
from llm_cost_ops.wire import DecodeError
from llm_cost_ops.wire.fields import walk
from llm_cost_ops.wire.unknown import UNKNOWN_FIELDS, Unknown

__all__ = ["GrpcServer", "HealthHandler"]


_log = logging.getLogger("llm_cost_ops.server")

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_MAX_MESSAGE = 1000
_COMPRESSED_FROM = 1024
# As protobuf they take a millisecond.
_MAX_INLINE_RECEIPTS = 512
_TAKES_JSON = (CODECS_HEADER, "json")

# A call that was accepted has begun within so many seconds.
_SETTLING = 0.1

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class GrpcServer:
    """A listener over a ServiceHandler, with grpc.health.v1 and reflection beside it.

    It listens on `host` and `port`, loopback unless told otherwise; port 0 takes a free one. With
    `uds` it listens on that Unix socket instead, which only the process's user may open.
    `tls` turns TLS on, but not on a Unix socket. `ready` tells health whether the service takes traffic.
    `admit` raises RpcError for a call that is not to be answered, and `admission` where one is too many:
    both before anything of it is decoded. `observe` gets each call of the service that was answered.
    An error that a servicer did not mean to raise is logged under its request id and tells the client
    nothing.
    """

    def __init__(
        self,
        handler: ServiceHandler,
        *,
        host: str = "127.0.0.1",
        port: int = 50051,
        uds: str | None = None,
        tls: ServerTls | None = None,
        ready: Callable[[], Awaitable[bool]] | None = None,
        admit: Callable[[CallContext], Awaitable[None]] | None = None,
        admission: Admission | None = None,
        limits: GrpcLimits | None = None,
        runtime: Runtime | None = None,
        observe: CallObserver | None = None,
    ) -> None:
        self._handler = handler
        self._observe = observe
        self._host = host
        self._port = port
        self._uds = uds
        self._certificate = None if tls is None or uds is not None else _Certificate(tls)
        self._credentials = None if self._certificate is None else self._certificate.credentials()
        self._ready = ready or _always
        self._admit = admit or _anybody
        self._admission = admission
        self._limits = limits or GrpcLimits()
        self._runtime = runtime or AsyncRuntime()
        self._server: grpc.aio.Server | None = None
        self._in_flight = OpenCalls()
        self._streams: list[HealthHandler | ReflectionHandler] = []

    async def start(self) -> str:
        """Bind and accept; the address really bound. Raises OSError when that can't be."""
        limits = self._limits
        # Above our limit a call is refused with a hint when to retry; above this, grpcio cuts it off.
        most = BACKLOG * limits.max_concurrent_calls
        server = grpc.aio.server(options=limits.options(), maximum_concurrent_rpcs=most)
        server.add_generic_rpc_handlers(self._handlers())
        address = self._bind(server)
        self._server = server
        await server.start()
        return address

    async def stop(self, grace: float) -> None:
        """Accept no more; let calls in flight finish, for at most `grace` seconds."""
        server, self._server = self._server, None
        if server is None:
            return
        for streams in self._streams:
            streams.stop()
        stopping = asyncio.create_task(server.stop(grace))
        # grpcio hands on no call that comes from now on, yet waits for it until the grace ends: once the
        # calls that were handed on are done, the wait is cut short.
        await asyncio.wait([stopping], timeout=_SETTLING)
        calls = [self._in_flight, *(each.open for each in self._streams)]
        while any(each.count for each in calls) and not stopping.done():
            await asyncio.wait([stopping], timeout=_SETTLING)
        await server.stop(None)
        await stopping
        if self._uds is not None:
            remove_socket(self._uds)

    def reload_certificates(self) -> None:
        """Use the certificate that is in the files now, for connections that come."""
        if self._certificate is not None:
            self._certificate.read()

    def _bind(self, server: grpc.aio.Server) -> str:
        if self._uds is not None:
            if not remove_stale_socket(self._uds):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), self._uds)
            with private_sockets():
                self._listen(server, f"unix:{self._uds}")
            return f"unix:{self._uds}"
        host = f"[{self._host}]" if ":" in self._host else self._host
        # grpcio would not say why it can't listen, and would write to standard error.
        tcp_listener(self._host, self._port).close()
        port = self._listen(server, f"{host}:{self._port}")
        return f"{'grpc' if self._credentials is None else 'grpcs'}://{host}:{port}"

    def _listen(self, server: grpc.aio.Server, address: str) -> int:
        try:
            if self._credentials is not None:
                return server.add_secure_port(address, self._credentials)
            return server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(errno.EADDRINUSE, f"can't listen there: {error}", address) from None

    def _handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for method in self._handler.methods.values():
            handlers = services.setdefault(method.service, {})
            call = _Method(
                method,
                self._handler,
                self._limits,
                self._runtime,
                self._in_flight,
                self._admit,
                None if self._admission is None or method.path in self._admission.exempt else self._admission,
                self._observe,
            )
            if method.cardinality is Cardinality.UNARY_UNARY:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(call.serve)
            elif method.cardinality is Cardinality.UNARY_STREAM:
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(call.stream)
            elif method.cardinality is Cardinality.STREAM_STREAM:
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(call.stream)
        health = HealthHandler(services, self._ready)
        image = DescriptorImage(files("llm_cost_ops._gen").joinpath("descriptors.binpb").read_bytes())
        reflection = ReflectionHandler([*services, SERVICE, *REFLECTION_SERVICES], image)
        self._streams = [health, reflection]
        ours = [grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()]
        return (*ours, health.handler(), *reflection.handlers())


class _Certificate:
    """What the files of a certificate hold, as grpcio asks for it at each handshake."""

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self._read = self._given = self.read()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Read the files, and have handshakes from now on use what is in them."""
        tls = self._tls
        key, certificate = (Path(name).read_bytes() for name in (tls.key_file, tls.cert_file))
        authorities = None if tls.client_ca_file is None else Path(tls.client_ca_file).read_bytes()
        self._read = grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)
        return self._read

    def credentials(self) -> grpc.ServerCredentials:
        """The credentials of a port."""
        required = self._tls.client_ca_file is not None
        # None, for no other one, is what grpcio documents and its stubs leave out.
        newer: Callable[[], Any] = self._newer
        return grpc.dynamic_ssl_server_credentials(self._read, newer, required)

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        if self._read is self._given:
            return None
        self._given = self._read
        return self._read


class _Method:
    """What grpcio calls for one method, with the bytes of the request, or an iterator of them."""

    def __init__(
        self,
        method: MethodDescriptor[Any, Any],
        handler: ServiceHandler,
        limits: GrpcLimits,
        runtime: Runtime,
        in_flight: OpenCalls,
        admit: Callable[[CallContext], Awaitable[None]],
        admission: Admission | None,
        observe: CallObserver | None,
    ) -> None:
        self._admit = admit
        self._observe = observe
        self._admission = admission
        self._in_flight = in_flight
        self._method = method
        self._answer = handler.answers[method.path]
        self._limits = limits
        self._runtime = runtime

    async def serve(self, data: bytes, grpc_context: Context) -> bytes:
        """The bytes of the response; or grpcio's abort, with the error's status."""

        async def answer(context: CallContext) -> bytes:
            json = _in_json(context)
            encode = partial(encode_message, self._method.response, json=json)
            most = MAX_INLINE_RECEIPTS if json else _MAX_INLINE_RECEIPTS
            async with self._in_time(context):
                response = await self._answer(await self._request(data, json=json), context)
                if is_long_answer(self._method, response, most):
                    encoded = await self._runtime.offload(encode, response)
                else:
                    encoded = encode(response)
            traffic.sent = len(encoded)
            return encoded

        traffic = Traffic()
        traffic.received = len(data)
        answered: bytes = await self._guarded(answer, grpc_context, traffic)
        if len(answered) < _COMPRESSED_FROM:
            grpc_context.disable_next_message_compression()
        return answered

    async def stream(self, incoming: Any, grpc_context: Context) -> None:
        """Write the bytes of each response; or grpcio's abort, with the error's status."""
        traffic = Traffic()

        async def answer(context: CallContext) -> None:
            json = _in_json(context)
            if json:
                # The client must know before the first answer that its requests are understood.
                await grpc_context.send_initial_metadata((_TAKES_JSON,))
            if self._method.cardinality is Cardinality.UNARY_STREAM:
                traffic.received = len(incoming)
                stream = self._answer(await self._request(incoming, json=json), context)
            else:
                stream = self._answer(self._requests(incoming, traffic, json=json), context)
            async with self._in_time(context), aclosing(stream) as responses:
                async for response in responses:
                    data = encode_message(self._method.response, response, json=json)
                    if len(data) < _COMPRESSED_FROM:
                        grpc_context.disable_next_message_compression()
                    traffic.sent += len(data)
                    await grpc_context.write(data)

        await self._guarded(answer, grpc_context, traffic)

    async def _guarded(
        self, answer: Callable[[CallContext], Awaitable[Any]], grpc_context: Context, traffic: Traffic
    ) -> Any:
        received = _received(grpc_context)
        request_id = next((value for key, value in received if key == REQUEST_ID_HEADER), "")
        request_id = request_id if is_request_id(str(request_id)) else uuid7()
        context: CallContext | None = None
        self._in_flight.enter(grpc_context)
        self._in_flight.working += 1
        started, traffic.status = self._runtime.monotonic(), "CANCELLED"
        try:
            if self._in_flight.working > self._limits.max_concurrent_calls:
                raise overloaded(self._runtime)
            context = self._context(received, str(request_id), grpc_context)
            if self._admission is not None:
                refusal = await self._admission.refusal(self._runtime, context.remaining())
                if refusal is not None:
                    raise refusal
            await self._admit(context)
            answered = await answer(context)
            traffic.status = "OK"
        except RpcError as error:
            traffic.status = error.code.name
            await _abort(grpc_context, error, context, str(request_id))
        except Exception:  # noqa: BLE001  # logged, and hidden from the client
            _log.exception("%s failed, request %s", self._method.name, request_id)
            traffic.status = "INTERNAL"
            hidden = RpcError(StatusCode.INTERNAL, "internal error")
            await _abort(grpc_context, hidden, context, str(request_id))
        finally:
            self._in_flight.working -= 1
            if self._observe is not None:
                seconds = self._runtime.monotonic() - started
                self._observe(traffic.grpc_call(context, self._method.full_name, str(request_id), seconds))
        trailers = _trailers(str(request_id), context.response_metadata)
        if context.response_status:
            trailers = (*trailers, (STATUS_HEADER, str(context.response_status)))
        grpc_context.set_trailing_metadata(trailers)
        return answered

    async def _request(self, data: bytes, *, json: bool = False) -> object:
        limits, method = self._limits, self._method
        most = max_bytes_of(method, limits.max_message_bytes, limits.max_receive_bytes)
        if len(data) > most:
            raise too_many_bytes("the request", most)
        most = limits.max_message_bytes
        try:
            if json and is_json(data):
                return await decode_json(method.request, BATCHES.get(method.path), data, most, self._runtime)
            return await decode_protobuf(method, data, most, self._runtime)
        except DecodeError as error:
            raise violation_of(error, "the request") from error

    async def _requests(
        self, incoming: AsyncIterator[bytes], traffic: Traffic, *, json: bool
    ) -> AsyncGenerator[object, None]:
        """The requests of a stream; one in protobuf that can't be decoded comes in parts."""
        slices = Slices(self._runtime)
        async for data in incoming:
            traffic.received += len(data)
            if traffic.received > self._limits.max_stream_bytes:
                raise too_many_bytes("all requests of a stream", self._limits.max_stream_bytes)
            if json and is_json(data):
                yield await self._json_request(data)
                await slices.pause()
                continue
            try:
                yield await self._request(data)
            except RpcError:
                for start, stop in _parts(data):
                    yield await self._part(data[start:stop])
                    await slices.pause()
            await slices.pause()

    async def _json_request(self, data: bytes) -> object:
        """A request of a stream in JSON; an element that can't be decoded says why, or else the whole."""
        codec, batch = self._method.request, STREAMED.get(self._method.path)
        try:
            return await decode_json(codec, batch, data, self._limits.max_message_bytes, self._runtime)
        except DecodeError as error:
            return codec.type(unknown_=Unknown(error=error.reason, error_field=error.path))

    async def _part(self, data: bytes) -> object:
        """One field of a message as a request of its own, so that a wrong element of a list fails alone.

        One that can't be decoded says why in its `unknown_`; so does the whole, where it has no fields.
        """
        try:
            return await self._request(data)
        except RpcError as error:
            field, reason = error.violations[0] if error.violations else ("", error.message)
            return self._method.request.type(unknown_=Unknown(error=reason, error_field=field))

    @contextlib.asynccontextmanager
    async def _in_time(self, context: CallContext) -> AsyncGenerator[None, None]:
        context.check_deadline()
        try:
            async with asyncio.timeout(context.remaining()):
                yield
        except TimeoutError as error:
            context.check_deadline(maybe_applied=True)
            raise RpcError(StatusCode.INTERNAL, "internal error") from error

    def _context(
        self, received: list[tuple[str, str | bytes]], request_id: str, grpc_context: Context
    ) -> CallContext:
        metadata = Metadata()
        try:
            for key, value in received:
                metadata.add(key, value)
        except ValueError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from error
        left = grpc_context.time_remaining()
        unary = self._method.cardinality is Cardinality.UNARY_UNARY
        longest = self._limits.call_timeout if unary else self._limits.stream_timeout
        seconds = longest if left is None else min(left, longest)
        return CallContext(
            self._method,
            self._runtime,
            metadata,
            self._runtime.monotonic() + seconds,
            key_of(metadata),
            request_id=request_id,
        )


def _parts(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the fields of a message start and stop; the whole, where it has none."""
    try:
        ends = [stop for _, _, stop in walk(data, 0, len(data))]
    except (DecodeError, IndexError):
        ends = [len(data)]
    return pairwise([0, *ends])


def _in_json(context: CallContext) -> bool:
    """Whether the messages of a call are JSON. RpcError UNIMPLEMENTED for neither that nor protobuf."""
    codec = context.metadata.get(CODEC_HEADER)
    if codec not in {"", "json", "proto"}:
        rule = f"{CODEC_HEADER} must be json or proto, not {str(codec)[:40]!r}"
        raise RpcError(StatusCode.UNIMPLEMENTED, rule)
    if codec == "json" and UNKNOWN_FIELDS not in context.metadata:
        # A client writes what its messages have, which may be newer: kept as in protobuf, whatever the codec.
        context.metadata.set(UNKNOWN_FIELDS, "keep")
    return codec == "json"


async def _always() -> bool:
    return True


async def _anybody(_context: CallContext) -> None:
    pass


def _received(context: Context) -> list[tuple[str, str | bytes]]:
    pairs: Iterable[Any] = context.invocation_metadata() or ()
    return [(key, value) for key, value in pairs if not key.startswith((":", "grpc-"))]


def _trailers(request_id: str, *metadatas: Metadata | None) -> tuple[tuple[str, str | bytes], ...]:
    pairs = [pair for metadata in metadatas if metadata is not None for pair in metadata]
    kept = [pair for pair in pairs if pair[0] != REQUEST_ID_HEADER and not pair[0].startswith("grpc-")]
    return (*kept, (REQUEST_ID_HEADER, request_id), _TAKES_JSON)


async def _abort(
    grpc_context: Context, error: RpcError, context: CallContext | None, request_id: str
) -> NoReturn:
    log_failure(error, request_id)
    message = error.message[:_MAX_MESSAGE]
    trailers = _trailers(request_id, error.metadata, None if context is None else context.response_metadata)
    details = write_status(error, message, request_id)
    await grpc_context.abort(
        _CODES[int(error.code)], message, (*trailers, ("grpc-status-details-bin", details))
    )
    raise AssertionError("abort raises")


SERVICE = "grpc.health.v1.Health"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3

# Asking the store costs a write, so an answer counts for so many seconds.
FRESH = 0.2


class HealthHandler:
    """Check and Watch for the server as a whole ("") and each of `services`.

    `ready()` tells whether the service takes traffic. `stop` ends the watches: an open one would
    hold up a server that drains.
    """

    def __init__(self, services: Iterable[str], ready: Callable[[], Awaitable[bool]]) -> None:
        self._services = {"", SERVICE, *services}
        self._ready = ready
        self._status = NOT_SERVING
        self._asked = float("-inf")
        self._asking = asyncio.Lock()
        self._stopped = asyncio.Event()
        self.open = OpenCalls()

    def handler(self) -> grpc.GenericRpcHandler:
        """What grpcio calls."""
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def check(self, request: bytes, context: Context) -> bytes:
        """The status of a service now; NOT_FOUND for one that is not here."""
        status = await self._status_of(await _service(request, context))
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return number(1, status)

    async def watch(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """The status of a service now, and whenever it changes."""
        self.open.enter(context)
        service = await _service(request, context)
        sent = 0
        while True:
            stopped = self._stopped.is_set()
            status = await self._status_of(service)
            if status != sent:
                sent = status
                yield number(1, status)
            if stopped:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FRESH):
                    await self._stopped.wait()

    def stop(self) -> None:
        """Say NOT_SERVING to everybody, and end the watches."""
        self._stopped.set()

    async def _status_of(self, service: str) -> int:
        if service not in self._services:
            return SERVICE_UNKNOWN
        if self._stopped.is_set():
            return NOT_SERVING
        async with self._asking:  # who comes meanwhile has the same answer, not the one before
            if time.monotonic() - self._asked >= FRESH:
                self._status = SERVING if await self._ready() else NOT_SERVING
                self._asked = time.monotonic()
        return self._status


async def _service(request: bytes, context: Context) -> str:
    try:
        return str(dict(fields_of(request)).get(1, b""), "utf-8")
    except (DecodeError, UnicodeDecodeError, TypeError) as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"HealthCheckRequest: {error}")
        raise
