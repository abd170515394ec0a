"""A connectrpc client of the service, over gRPC; prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from connectrpc.client import ConnectClient, ResponseMetadata
from connectrpc.compat import google_protobuf_binary_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.protocol import ProtocolType
from llm_cost_ops.v1 import usage_pb2
from pyqwest import Client, HTTPTransport, HTTPVersion


def method(name: str) -> MethodInfo:
    return MethodInfo(
        name=name,
        service_name="llm_cost_ops.v1.UsageService",
        input=getattr(usage_pb2, f"{name}Request"),
        output=getattr(usage_pb2, f"{name}Response"),
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.UNARY,
    )


async def failure(call) -> dict:
    try:
        await call
    except ConnectError as error:
        kinds = [type(detail).__name__ for detail in error.details]
        return {"code": error.code.name, "message": error.message, "kinds": kinds}
    return {"code": "OK"}


async def main(target: str, organization: str) -> dict:
    usage = {
        "organization_id": organization,
        "provider": "openai",
        "model_id": "gpt-4o",
        "input_tokens": 1000,
    }
    request = usage_pb2.SubmitUsageRequest(usage=usage)
    async with HTTPTransport(http_version=HTTPVersion.HTTP2) as transport:
        http = Client(transport=transport)
        client = ConnectClient(
            f"http://{target}",
            codec=google_protobuf_binary_codec(),
            protocol=ProtocolType.GRPC,
            http_client=http,
        )
        headers = {"idempotency-key": "k-1", "x-request-id": "mine-1"}
        with ResponseMetadata() as told:
            first = await client.execute_unary(request=request, method=method("SubmitUsage"), headers=headers)
            trailers = dict(told.trailers.items())
        again = await client.execute_unary(request=request, method=method("SubmitUsage"), headers=headers)
        for n in range(60):
            more = usage_pb2.SubmitUsageRequest(usage={**usage, "idempotency_key": f"n-{n}"})
            await client.execute_unary(request=more, method=method("SubmitUsage"))
        query = usage_pb2.ListUsageRequest(filter={"organization_id": [organization]}, page_size=100)
        listed = await client.execute_unary(request=query, method=method("ListUsage"), timeout_ms=5000)
        bad = usage_pb2.SubmitUsageRequest(usage={**usage, "input_tokens": -5})
        return {
            "cost": first.data.estimated_cost,
            "duplicate": [first.data.duplicate, again.data.duplicate],
            "trailers": trailers,
            "listed": len(listed.data),
            "invalid": await failure(client.execute_unary(request=bad, method=method("SubmitUsage"))),
        }


print(json.dumps(asyncio.run(main(*sys.argv[1:]))), flush=True)
# Its native HTTP client sometimes aborts while the interpreter ends, which is none of our business.
os._exit(0)
