"""grpc.reflection: what grpcurl and other tools learn the protocol from.

The descriptors are an image that is generated beside the code. They are served as they are and go
into no descriptor pool, least of all the one that a process shares.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc

from llm_cost_ops.server.calls import OpenCalls
from llm_cost_ops.transports.grpc.status import block, fields_of, number
from llm_cost_ops.wire import DecodeError

__all__ = ["DescriptorImage", "ReflectionHandler"]

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

# Names of fields in google.protobuf's descriptors.
_NAME, _PACKAGE, _DEPENDENCY, _MESSAGE, _ENUM, _SERVICE, _EXTENSION = 1, 2, 3, 4, 5, 6, 7
_NESTED, _NESTED_ENUM, _METHOD = 3, 4, 2

_NOT_FOUND, _INVALID, _UNIMPLEMENTED = 5, 3, 12


class DescriptorImage:
    """A serialized FileDescriptorSet, by file and by symbol."""

    def __init__(self, image: bytes) -> None:
        self._files: dict[str, bytes] = {}
        self._imports: dict[str, list[str]] = {}
        self._symbols: dict[str, str] = {}
        for field, data in fields_of(image):
            if field == 1:
                self._add(data)

    def _add(self, data: bytes) -> None:
        fields = list(fields_of(data))
        name, package = _text(fields, _NAME), _text(fields, _PACKAGE)
        self._files[name] = data
        self._imports[name] = [value.decode() for field, value in fields if field == _DEPENDENCY]
        for field, value in fields:
            if field in {_MESSAGE, _ENUM, _SERVICE, _EXTENSION}:
                for symbol in _symbols(field, value, package):
                    self._symbols[symbol] = name

    def of_file(self, name: str) -> list[bytes]:
        """A file and all that it imports; empty when there is none."""
        found: dict[str, bytes] = {}
        waiting = [name]
        while waiting:
            one = waiting.pop()
            if one in self._files and one not in found:
                found[one] = self._files[one]
                waiting += self._imports[one]
        return list(found.values())

    def of_symbol(self, symbol: str) -> list[bytes]:
        """The file that says what a symbol is, and all that it imports; empty when there is none."""
        return self.of_file(self._symbols.get(symbol.lstrip("."), ""))


def _symbols(kind: int, data: bytes, parent: str) -> Iterable[str]:
    fields = list(fields_of(data))
    name = f"{parent}.{_text(fields, _NAME)}".lstrip(".")
    yield name
    for field, value in fields:
        if kind == _SERVICE and field == _METHOD:
            yield f"{name}.{_text(list(fields_of(value)), _NAME)}"
        elif kind == _MESSAGE and field == _NESTED:
            yield from _symbols(_MESSAGE, value, name)
        elif kind == _MESSAGE and field == _NESTED_ENUM:
            yield from _symbols(_ENUM, value, name)


def _text(fields: list[tuple[int, Any]], number: int) -> str:
    return next((str(value, "utf-8") for field, value in fields if field == number), "")


class ReflectionHandler:
    """Answers ServerReflectionInfo, in both versions of the protocol."""

    def __init__(self, services: Iterable[str], image: DescriptorImage) -> None:
        self._services = sorted(services)
        self._image = image
        self._stopped = asyncio.Event()
        self.open = OpenCalls()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What grpcio calls."""
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(self.answer)
        }
        return [grpc.method_handlers_generic_handler(service, methods) for service in SERVICES]

    async def answer(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        """An answer for each request."""
        self.open.enter(context)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            while True:
                reading = asyncio.ensure_future(context.read())
                await asyncio.wait((reading, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    return
                request = reading.result()
                if request is grpc.aio.EOF:
                    return
                yield self._respond(request)
        finally:
            stopped.cancel()

    def stop(self) -> None:
        """End the streams: an open one would delay a server that drains."""
        self._stopped.set()

    def _respond(self, request: bytes) -> bytes:
        try:
            asked = dict(fields_of(request))
            host = block(1, asked.get(1, b"")) + block(2, request)
            if 7 in asked:
                listed = b"".join(block(1, block(1, service)) for service in self._services)
                return host + block(6, listed)
            if 3 in asked:
                files = self._image.of_file(str(asked[3], "utf-8"))
            elif 4 in asked:
                files = self._image.of_symbol(str(asked[4], "utf-8"))
            else:
                return host + _error(_UNIMPLEMENTED, "extensions are not looked up")
        except (DecodeError, UnicodeDecodeError, TypeError) as error:
            return _error(_INVALID, f"ServerReflectionRequest: {error}")
        if not files:
            return host + _error(_NOT_FOUND, "there is nothing of that name")
        return host + block(4, b"".join(block(1, data) for data in files))


def _error(code: int, message: str) -> bytes:
    return block(7, number(1, code) + block(2, message))
