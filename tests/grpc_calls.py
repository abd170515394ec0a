"""One call of a gRPC transport in either colour, for the tests of both."""

from __future__ import annotations

import asyncio
import time

from llm_cost_ops.rpc.runtime import drive
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.transports.grpc.client import AsyncGrpcTransport, GrpcTransport
from tests.tiny_service import PUT_NOTE, Note, PutNoteRequest, context

__all__ = ["PUT", "TIMEOUT", "call", "url_of"]

TIMEOUT = 0.3
PUT = PutNoteRequest(note=Note(id="n"))


def url_of(peer):
    return f"grpc://127.0.0.1:{peer.port}"


def call(colour, url, method=PUT_NOTE, request=PUT, timeout=TIMEOUT, ctx=None, **settings):
    """One call in one colour; the response or the error."""

    async def run(transport, asynchronous):
        made = ctx or context(method, timeout, asynchronous=asynchronous)
        try:
            return await transport.unary_unary(request, made)
        except RpcError as error:
            return error

    async def run_async():
        transport = AsyncGrpcTransport(url, **settings)
        started = time.monotonic()
        result = await run(transport, asynchronous=True)
        taken = time.monotonic() - started
        await transport.aclose()
        return result, taken

    if colour == "sync":
        transport = GrpcTransport(url, **settings)
        started = time.monotonic()
        result = drive(run(transport, asynchronous=False))
        taken = time.monotonic() - started
        drive(transport.aclose())
    else:
        result, taken = asyncio.run(run_async())
    if timeout is not None:
        print(f"{colour}: {taken - timeout:+.3f} s from the deadline: {result}")  # noqa: T201  # as for HTTP
        assert taken < timeout + 20.0
    return result
