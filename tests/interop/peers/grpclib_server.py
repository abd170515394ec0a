"""A plain grpclib server of the usage service. It does what the metadata `x-act` says."""

from __future__ import annotations

import asyncio

from google.rpc import error_details_pb2
from grpclib import GRPCError, Status
from grpclib.encoding.proto import ProtoCodec, ProtoStatusDetailsCodec
from grpclib.server import Server
from llm_cost_ops.v1 import usage_grpc, usage_pb2


class Usage(usage_grpc.UsageServiceBase):
    async def SubmitUsage(self, stream):
        metadata = stream.metadata
        act, _, value = metadata.get("x-act", "").partition(":")
        request = await stream.recv_message()
        if act == "status":
            bad = error_details_pb2.BadRequest()
            bad.field_violations.add(field="usage.provider", description="is bad")
            raise GRPCError(Status(int(value)), "né", [bad])
        if act == "sleep":
            await asyncio.sleep(float(value))
        await stream.send_initial_metadata(metadata={"x-seen-bin": metadata.get("x-raw-bin", b"")})
        receipt = usage_pb2.UsageReceipt(usage_id=request.usage.model_id, currency="USD")
        await stream.send_message(usage_pb2.SubmitUsageResponse(data=receipt))
        left = stream.deadline.time_remaining() if stream.deadline else 0
        await stream.send_trailing_metadata(metadata={"x-left": str(int(left * 1000))})


for name in dir(usage_grpc.UsageServiceBase):
    if name in getattr(usage_grpc.UsageServiceBase, "__abstractmethods__", ()) and name != "SubmitUsage":
        setattr(Usage, name, None)
Usage.__abstractmethods__ = frozenset()


async def main() -> None:
    server = Server([Usage()], codec=ProtoCodec(), status_details_codec=ProtoStatusDetailsCodec())
    await server.start("127.0.0.1", 0)
    print(f"127.0.0.1:{server._server.sockets[0].getsockname()[1]}")
    await server.wait_closed()


asyncio.run(main())
