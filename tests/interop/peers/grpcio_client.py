"""A plain grpcio client of the service; prints what it saw as JSON."""

from __future__ import annotations

import json
import sys

import grpc
from google.rpc import error_details_pb2, status_pb2
from llm_cost_ops.v1 import pricing_pb2, pricing_pb2_grpc, usage_pb2, usage_pb2_grpc


def failure(call, *arguments, **options) -> dict:
    try:
        call(*arguments, **options)
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
        violations = []
        for detail in status.details:
            bad = error_details_pb2.BadRequest()
            if detail.Unpack(bad):
                violations += [[one.field, one.description] for one in bad.field_violations]
        return {
            "code": error.code().name,
            "details": error.details(),
            "status": status.code,
            "kinds": [detail.type_url.rpartition(".")[2] for detail in status.details],
            "violations": violations,
            "request_id": trailers.get("x-request-id", ""),
        }
    return {"code": "OK"}


def record(organization: str, **fields) -> usage_pb2.SubmitUsageRequest:
    return usage_pb2.SubmitUsageRequest(
        usage={"organization_id": organization, "provider": "openai", "model_id": "gpt-4o", **fields}
    )


def main(target: str, organization: str) -> dict:
    gzip = {"compression": grpc.Compression.Gzip}
    with grpc.insecure_channel(target) as channel, grpc.insecure_channel(target, **gzip) as zipped:
        usage = usage_pb2_grpc.UsageServiceStub(channel)
        small = usage_pb2_grpc.UsageServiceStub(zipped)
        prices = pricing_pb2_grpc.PricingServiceStub(channel)
        tokens = {"input_tokens": 1000, "output_tokens": 500}
        metadata = (("idempotency-key", "k-1"), ("x-request-id", "mine-1"), ("x-raw-bin", b"\x00\xff"))
        first, call = usage.SubmitUsage.with_call(
            record(organization, **tokens), metadata=metadata, timeout=60
        )
        again = small.SubmitUsage(record(organization, **tokens), metadata=metadata, timeout=60)
        for n in range(60):
            small.SubmitUsage(record(organization, **tokens, idempotency_key=f"n-{n}"), timeout=60)
        listed = small.ListUsage(
            usage_pb2.ListUsageRequest(filter={"organization_id": [organization]}, page_size=100), timeout=60
        )
        raw = channel.unary_unary("/llm_cost_ops.v1.UsageService/SubmitUsage")
        return {
            "cost": first.data.estimated_cost,
            "duplicate": [first.data.duplicate, again.data.duplicate],
            "same": first.data.usage_id == again.data.usage_id,
            "trailers": {key: value for key, value in call.trailing_metadata() if isinstance(value, str)},
            "listed": len(listed.data),
            "conflict": failure(usage.SubmitUsage, record(organization, input_tokens=1), metadata=metadata),
            "invalid": failure(usage.SubmitUsage, record("", input_tokens=-5)),
            "missing": failure(prices.GetPrice, pricing_pb2.GetPriceRequest(id="no-such")),
            "garbage": failure(raw, b"\x0a\xff"),
            "unknown": failure(channel.unary_unary("/llm_cost_ops.v1.UsageService/Burn"), b""),
            "metadata": failure(
                usage.SubmitUsage, record(organization), metadata=[(f"x-{n}", "1") for n in range(70)]
            ),
        }


print(json.dumps(main(*sys.argv[1:])))
