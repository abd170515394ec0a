"""The transports that go over a network, HTTP and gRPC, each in both colours, for the tests of both."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.transports.grpc.client import AsyncGrpcTransport, GrpcTransport
from llm_cost_ops.transports.http.client import AsyncHttpTransport, HttpTransport
from tests import faulty_grpc_peers, faulty_peers
from tests.tiny_service import PUT_NOTE, Note, PutNoteRequest, context

__all__ = ["GRPC", "HTTP", "PUT", "TIMEOUT", "Network"]

TIMEOUT = 0.3
PUT = PutNoteRequest(note=Note(id="n"))


class Network(NamedTuple):
    """A kind of transport: both its classes, the scheme of its URLs, and the peers that it meets.

    `good` is a peer that answers every call, `silent` one that never does.
    """

    sync: type
    asynchronous: type
    scheme: str
    good: object
    silent: object

    def url_of(self, peer):
        return self.url(peer.port)

    def url(self, port, host="127.0.0.1", tls=""):
        return f"{self.scheme}{tls}://{host}:{port}"

    def call(self, colour, url, method=PUT_NOTE, request=PUT, timeout=TIMEOUT, **settings):
        """One call in one colour; the response or the error. The time over the deadline is printed."""

        async def run(transport, asynchronous):
            try:
                return await transport.unary_unary(
                    request, context(method, timeout, asynchronous=asynchronous)
                )
            except RpcError as error:
                return error

        async def run_async():
            transport = self.asynchronous(url, **settings)
            started = time.monotonic()
            result = await run(transport, asynchronous=True)
            taken = time.monotonic() - started
            await transport.aclose()
            return result, taken

        if colour == "sync":
            transport = self.sync(url, **settings)
            started = time.monotonic()
            result = drive(run(transport, asynchronous=False))
            taken = time.monotonic() - started
            drive(transport.aclose())
        else:
            result, taken = asyncio.run(run_async())
        if timeout is not None:
            print(f"{colour}: {taken - timeout:+.3f} s from the deadline: {result}")  # noqa: T201  # the figure is what it is about
            assert taken < timeout + 20.0
        return result


_HTTP_ANSWER = faulty_peers.answer("200 OK", b'{"data": {"id": "n"}}')
HTTP = Network(
    HttpTransport, AsyncHttpTransport, "http", faulty_peers.answering(_HTTP_ANSWER), faulty_peers.silent
)
GRPC = Network(
    GrpcTransport,
    AsyncGrpcTransport,
    "grpc",
    faulty_grpc_peers.answering(faulty_grpc_peers.ANSWER),
    faulty_grpc_peers.BEHAVIOURS["silent"][0],
)
