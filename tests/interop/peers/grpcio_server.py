"""A plain grpcio server of the usage service. It does what the metadata `x-act` says."""

from __future__ import annotations

import asyncio
import sys

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from llm_cost_ops.v1 import usage_pb2, usage_pb2_grpc

CODES = {code.value[0]: code for code in grpc.StatusCode}


def details(code: int) -> bytes:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="usage.provider", description="is bad")
    status = status_pb2.Status(code=code, message="né")
    for detail in (
        bad,
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
        error_details_pb2.RequestInfo(request_id="r-9"),
        error_details_pb2.Help(),
    ):
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status.SerializeToString()


class Usage(usage_pb2_grpc.UsageServiceServicer):
    async def SubmitUsage(self, request, context):
        metadata = dict(context.invocation_metadata())
        act, _, value = metadata.get("x-act", "").partition(":")
        if act == "status":
            told = (("grpc-status-details-bin", details(int(value))), ("x-more-bin", b"\x00\xff"))
            await context.abort(CODES[int(value)], "né", told)
        if act == "pushback":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "busy", (("grpc-retry-pushback-ms", value),))
        if act == "sleep":
            await asyncio.sleep(float(value))
        await context.send_initial_metadata((("x-seen-bin", metadata.get("x-raw-bin", b"")),))
        context.set_trailing_metadata((("x-left", str(int((context.time_remaining() or 0) * 1000))),))
        receipt = usage_pb2.UsageReceipt(usage_id=request.usage.model_id, currency="USD")
        if act == "big":
            receipt.organization_id = "a" * int(value)
        return usage_pb2.SubmitUsageResponse(data=receipt)


async def main() -> None:
    options = [(name, int(value)) for name, value in (option.split("=") for option in sys.argv[2:])]
    gzip = grpc.Compression.Gzip if sys.argv[1] == "gzip" else None
    server = grpc.aio.server(options=options, compression=gzip)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(Usage(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}")
    await server.wait_for_termination()


asyncio.run(main())
