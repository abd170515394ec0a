"""Records of a gRPC stream that other clients send, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import grpc.aio

from llm_cost_ops import UsageRecord
from llm_cost_ops._gen.codecs import STREAM_USAGE_RESPONSE, USAGE_RECORD
from llm_cost_ops._gen.messages import StreamUsageRequest
from llm_cost_ops._gen.methods import STREAM_USAGE
from tests.conformance.clients import running_server


async def test_a_record_that_cannot_be_decoded_harms_no_other_of_its_message(tmp_path: Path) -> None:
    good = USAGE_RECORD.encode(
        UsageRecord(
            organization_id="acme", provider="openai", model_id="gpt-4o", input_tokens=1, output_tokens=1
        )
    )
    bad = b"\x12\x02\xff\xfe"
    parts = [b"\x0a" + bytes([len(each)]) + each for each in (good, bad, good)]
    with running_server(tmp_path, "--grpc", "127.0.0.1:0") as urls:
        async with grpc.aio.insecure_channel(urls["grpc"].removeprefix("grpc://")) as channel:
            call = channel.stream_stream(STREAM_USAGE.path)()
            for data in (parts[0], b"".join(parts), b"\xff\xff\xff", parts[2]):
                await call.write(data)
            await call.done_writing()
            answers = [STREAM_USAGE_RESPONSE.decode(data) async for data in call]
    assert (answers[-1].durable, answers[-1].created) == (6, 4)
    problems = [problem for answer in answers for problem in answer.problems]
    assert [problem.index for problem in problems] == [2, 4]
    assert "UTF-8" in problems[0].error.message
    assert "records" not in problems[0].error.violations[0].field


async def test_json_of_a_stream(tmp_path: Path) -> None:
    good = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "output_tokens": 1}
    # More bytes than any other message may have, and less than a batch.
    large = [{**good, "metadata": {"note": "a" * 5000}} for _ in range(100)]
    messages = [
        json.dumps({"records": [good]}).encode(),
        json.dumps({"records": [good, {**good, "output_tokens": "many"}, good]}).encode(),
        b"{",
        # A message in protobuf is one in this call too.
        STREAM_USAGE.request.encode(
            StreamUsageRequest(records=[USAGE_RECORD.decode_json(json.dumps(good).encode())])
        ),
        json.dumps({"records": large}).encode(),
        # More than a batch may have.
        json.dumps({"records": [good] * 10_001}).encode(),
    ]
    with running_server(tmp_path, "--grpc", "127.0.0.1:0") as urls:
        async with grpc.aio.insecure_channel(urls["grpc"].removeprefix("grpc://")) as channel:
            call = channel.stream_stream(STREAM_USAGE.path)(metadata=[("llm-cost-ops-codec", "json")])
            assert ("llm-cost-ops-codecs", "json") in list(await call.initial_metadata())
            for data in messages:
                await call.write(data)
            await call.done_writing()
            answers = [STREAM_USAGE_RESPONSE.decode_json(data) async for data in call]
    assert (answers[-1].durable, answers[-1].created) == (10_107, 10_105)
    problems = [problem for answer in answers for problem in answer.problems]
    assert [problem.index for problem in problems] == [2, 4]
    assert problems[0].error.violations[0].field == "output_tokens"
