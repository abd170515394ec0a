"""Callers without generated protobuf classes: our client, httpx, and grpclib that moves ready bytes.

Run by bench_transports: ours.py KIND URL
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from rounds import QUERY, RECORD, AsyncCalls, SyncCalls, answer, new_key

Openers = tuple[SyncCalls, Callable[[], Awaitable[AsyncCalls]]]

KEY = "0" * 36
TIMEOUT = 30.0  # what our client has without being told


def ours(url: str) -> Openers:
    from llm_cost_ops import AsyncCostOpsClient, CostOpsClient

    client = CostOpsClient(base_url=url)
    record: dict[str, Any] = RECORD
    query: dict[str, Any] = QUERY

    async def open_async() -> AsyncCalls:
        aclient = AsyncCostOpsClient(base_url=url)
        return {
            "SubmitUsage": lambda: aclient.usage.submit(**record),
            "GetCostSummary": lambda: aclient.costs.get(**query),
        }

    calls = {
        "SubmitUsage": lambda: client.usage.submit(**record),
        "GetCostSummary": lambda: client.costs.get(**query),
    }
    return calls, open_async


def httpx_as_used(url: str) -> Openers:
    """As an application uses it: objects in, objects out."""
    import httpx

    client = httpx.Client(base_url=url, trust_env=False)

    async def open_async() -> AsyncCalls:
        aclient = httpx.AsyncClient(base_url=url, trust_env=False)

        async def submit() -> object:
            body = {**RECORD, "idempotency_key": new_key()}
            return (await aclient.post("/api/v1/usage", json=body)).raise_for_status().json()

        async def costs() -> object:
            return (await aclient.get("/api/v1/costs", params=QUERY)).raise_for_status().json()

        return {"SubmitUsage": submit, "GetCostSummary": costs}

    def submit() -> object:
        body = {**RECORD, "idempotency_key": new_key()}
        return client.post("/api/v1/usage", json=body).raise_for_status().json()

    def costs() -> object:
        return client.get("/api/v1/costs", params=QUERY).raise_for_status().json()

    return {"SubmitUsage": submit, "GetCostSummary": costs}, open_async


def httpx_bare(url: str) -> Openers:
    """The library alone: ready bytes, and an answer that nobody reads."""
    import httpx
    import msgspec

    client = httpx.Client(trust_env=False)
    before, after = msgspec.json.encode({**RECORD, "idempotency_key": KEY}).split(KEY.encode())
    post, get = f"{url}/api/v1/usage", f"{url}/api/v1/costs?organization_id=bench&group_by=provider"
    headers = {"content-type": "application/json"}

    def body() -> bytes:
        return before + new_key().encode() + after

    async def open_async() -> AsyncCalls:
        aclient = httpx.AsyncClient(trust_env=False)
        return {
            "SubmitUsage": lambda: aclient.post(post, content=body(), headers=headers),
            "GetCostSummary": lambda: aclient.get(get),
        }

    calls = {
        "SubmitUsage": lambda: client.post(post, content=body(), headers=headers),
        "GetCostSummary": lambda: client.get(get),
    }
    return calls, open_async


def grpclib_bare(url: str) -> Openers:
    """The library alone: ready bytes both ways, beside what ours sends too. It has no sync client."""
    from grpclib.client import Channel, UnaryUnaryMethod
    from grpclib.encoding.base import CodecBase

    from llm_cost_ops._gen.messages import GetCostSummaryRequest, SubmitUsageRequest, UsageRecord
    from llm_cost_ops._gen.methods import GET_COST_SUMMARY, SUBMIT_USAGE

    class Raw(CodecBase):
        __content_subtype__ = "proto"

        def encode(self, message: Any, message_type: Any) -> bytes:
            ready: bytes = message
            return ready

        def decode(self, data: bytes, message_type: Any) -> bytes:
            return data

    record: dict[str, Any] = {**RECORD, "idempotency_key": KEY}
    whole = SUBMIT_USAGE.request.encode(SubmitUsageRequest(usage=UsageRecord(**record)))
    before, after = whole.split(KEY.encode())
    query = GetCostSummaryRequest(organization_id=["bench"], group_by=["provider"])
    question = GET_COST_SUMMARY.request.encode(query)

    async def open_async() -> AsyncCalls:
        host, _, port = url.removeprefix("grpc://").rpartition(":")
        channel = Channel(host, int(port), codec=Raw())
        send = UnaryUnaryMethod[bytes, bytes](channel, SUBMIT_USAGE.path, bytes, bytes)
        ask = UnaryUnaryMethod[bytes, bytes](channel, GET_COST_SUMMARY.path, bytes, bytes)

        def submit() -> Awaitable[bytes]:
            key = new_key()
            headers = {"idempotency-key": key}
            return send(before + key.encode() + after, timeout=TIMEOUT, metadata=headers)

        return {"SubmitUsage": submit, "GetCostSummary": lambda: ask(question, timeout=TIMEOUT)}

    return {}, open_async


KINDS = {
    "embedded": ours,
    "http": ours,
    "grpc": ours,
    "httpx": httpx_as_used,
    "httpx, bare": httpx_bare,
    "grpclib, bare": grpclib_bare,
}

if __name__ == "__main__":
    answer(*KINDS[sys.argv[1]](sys.argv[2]))
