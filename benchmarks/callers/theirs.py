"""Callers with classes that google's compiler generated from our .proto files: grpcio and connectrpc.

Run by bench_transports, with the generated package first on the path: theirs.py KIND URL
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from rounds import QUERY, RECORD, AsyncCalls, SyncCalls, answer, new_key

Openers = tuple[SyncCalls, Callable[[], Awaitable[AsyncCalls]]]

METHODS = {
    "SubmitUsage": ("UsageService", "usage_pb2"),
    "GetCostSummary": ("CostService", "costs_pb2"),
}


def module(name: str) -> Any:
    from importlib import import_module

    return import_module(f"llm_cost_ops.v1.{name}")


def submit() -> Any:
    return module("usage_pb2").SubmitUsageRequest(usage={**RECORD, "idempotency_key": new_key()})


def question() -> Any:
    where = {"organization_id": [QUERY["organization_id"]]}
    return module("costs_pb2").GetCostSummaryRequest(filter=where, group_by=[QUERY["group_by"]])


REQUESTS = {"SubmitUsage": submit, "GetCostSummary": question}


def bound(call: Callable[[Any], Any], name: str) -> Callable[[], Any]:
    make = REQUESTS[name]
    return lambda: call(make())


def grpcio(url: str) -> Openers:
    import grpc

    target = url.removeprefix("grpc://")

    def calls(channel: Any) -> dict[str, Callable[[], Any]]:
        usage = module("usage_pb2_grpc").UsageServiceStub(channel)
        costs = module("costs_pb2_grpc").CostServiceStub(channel)
        found = {"SubmitUsage": usage.SubmitUsage, "GetCostSummary": costs.GetCostSummary}
        return {name: bound(call, name) for name, call in found.items()}

    async def open_async() -> AsyncCalls:
        return calls(grpc.aio.insecure_channel(target))

    return calls(grpc.insecure_channel(target)), open_async


def connectrpc(url: str) -> Openers:
    from connectrpc.client import ConnectClient, ConnectClientSync
    from connectrpc.compat import google_protobuf_binary_codec
    from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
    from connectrpc.protocol import ProtocolType
    from pyqwest import Client, HTTPTransport, HTTPVersion, SyncClient, SyncHTTPTransport

    address = url.replace("grpc://", "http://")
    options: dict[str, Any] = {"codec": google_protobuf_binary_codec(), "protocol": ProtocolType.GRPC}
    options["send_compression"] = None

    def method(name: str) -> Any:
        service, file = METHODS[name]
        return MethodInfo(
            name=name,
            service_name=f"llm_cost_ops.v1.{service}",
            input=getattr(module(file), f"{name}Request"),
            output=getattr(module(file), f"{name}Response"),
            idempotency_level=IdempotencyLevel.UNKNOWN,
            stream_type=StreamType.UNARY,
        )

    def calls(client: Any) -> dict[str, Callable[[], Any]]:
        methods = {name: method(name) for name in METHODS}

        def call(name: str) -> Callable[[], Any]:
            return bound(lambda request: client.execute_unary(request=request, method=methods[name]), name)

        return {name: call(name) for name in METHODS}

    async def open_async() -> AsyncCalls:
        http = Client(HTTPTransport(http_version=HTTPVersion.HTTP2))
        return calls(ConnectClient(address, http_client=http, **options))

    http = SyncClient(SyncHTTPTransport(http_version=HTTPVersion.HTTP2))
    return calls(ConnectClientSync(address, http_client=http, **options)), open_async


KINDS = {"grpcio": grpcio, "connectrpc": connectrpc}

if __name__ == "__main__":
    answer(*KINDS[sys.argv[1]](sys.argv[2]))
