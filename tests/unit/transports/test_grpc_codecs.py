"""Which codec a connection of gRPC uses: protobuf, and JSON once the server said that it takes it."""

from __future__ import annotations

import asyncio
import base64
from collections import defaultdict
from contextlib import aclosing

import pytest
from h2.events import DataReceived

from llm_cost_ops._gen.messages import (
    CostRecord,
    GetCostRequest,
    GetCostResponse,
    StreamUsageRequest,
    StreamUsageResponse,
    SubmitUsageRequest,
    SubmitUsageResponse,
    UsageReceipt,
    UsageRecord,
)
from llm_cost_ops._gen.methods import GET_COST, STREAM_USAGE, SUBMIT_USAGE
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.transports.grpc.client import AsyncGrpcTransport, GrpcTransport
from llm_cost_ops.transports.grpc.status import write_status
from llm_cost_ops.wire.unknown import Unknown
from tests.faulty_grpc_peers import DONE, HEAD, Http2, frame
from tests.faulty_peers import FaultyPeer
from tests.tiny_service import context
from tests.waiting import MAX_WAIT

OFFER = ("llm-cost-ops-codecs", "json")
RECEIPT = SubmitUsageResponse(data=UsageReceipt(usage_id="u"))
COST = GetCostResponse(data=CostRecord(usage_id="u"))
SUBMIT = (SUBMIT_USAGE, SubmitUsageRequest(usage=UsageRecord(organization_id="o", model_id="m")))
READ = (GET_COST, GetCostRequest(usage_id="u"))


class Peer(Http2):
    """A server's end that keeps the bodies of requests."""

    def __init__(self, connection):
        self.bodies = defaultdict(bytes)
        super().__init__(connection)

    def receive(self):
        events = super().receive()
        for event in events:
            if isinstance(event, DataReceived):
                self.bodies[event.stream_id] += event.data
        return events

    def asked(self, stream):
        """The codec of a request, whose head and bytes say the same."""
        headers = self.headers[stream]
        json = headers.get("llm-cost-ops-codec") == "json"
        assert headers["content-type"] == ("application/grpc+json" if json else "application/grpc")
        assert self.bodies[stream][5:6] == b"{" or not json
        return "json" if json else "proto"


def served(came, *answers, last=0):
    """Answers requests by turns, the last answer ever after; `came` gets the codecs that were asked for.

    With `last` a connection goes away with so many requests.
    """
    left = list(answers)

    def behave(connection):
        peer = Peer(connection)
        while True:
            stream = peer.read_request()
            codec = peer.asked(stream)
            came.append(codec)
            if stream == 2 * last - 1:
                peer.goaway(stream)
            path = peer.headers[stream][":path"]
            method, response = (SUBMIT_USAGE, RECEIPT) if path == SUBMIT_USAGE.path else (GET_COST, COST)
            peer.send(stream, *(left.pop(0) if len(left) > 1 else left[0])(method.response, response, codec))

    return behave


def offers(message, response, codec):
    encode = message.encode_json if codec == "json" else message.encode
    return HEAD, frame(encode(response)), [*DONE, OFFER]


def only_protobuf(message, response, codec):
    assert codec == "proto"
    return HEAD, frame(message.encode(response)), DONE


def fails(code, *, known=False):
    return lambda *_: ([*HEAD, ("grpc-status", str(code.value)), *([OFFER] if known else [])], None, None)


def no_such_type(*_):
    return [(":status", "415"), ("content-type", "text/plain")], None, None


def too_large(*_):
    error = RpcError(StatusCode.INVALID_ARGUMENT, "large", error_code="PAYLOAD_TOO_LARGE")
    details = base64.b64encode(write_status(error, "large", "")).decode()
    return [*HEAD, ("grpc-status", "3"), ("grpc-status-details-bin", details), OFFER], None, None


class Client:
    """A transport of either colour, whose calls are made one after another."""

    def __init__(self, colour, peer, limit):
        self._sync = colour == "sync"
        kind = GrpcTransport if self._sync else AsyncGrpcTransport
        self._transport = kind(f"grpc://127.0.0.1:{peer.port}", max_response_bytes=limit)

    async def call(self, method, request, *, key="", metadata=None):
        about = context(method, MAX_WAIT, asynchronous=not self._sync, key=key)
        if metadata is not None:
            about.metadata.add(*metadata)
        answer = self._transport.unary_unary(request, about)
        return (await asyncio.to_thread(drive, answer)) if self._sync else await answer

    async def close(self):
        closing = self._transport.aclose()
        if self._sync:
            drive(closing)
        else:
            await closing


async def made(colour, behave, *calls, key="k", limit=10_000, metadata=None):
    """The answers of calls on one client; an error where there was one."""
    answers = []
    with FaultyPeer(behave) as peer:
        client = Client(colour, peer, limit)
        for method, request in calls:
            try:
                answers.append(await client.call(method, request, key=key, metadata=metadata))
            except RpcError as error:
                answers.append(error)
        await client.close()
    return answers


async def test_json_once_the_server_said_so(colour):
    came = []
    assert await made(colour, served(came, offers), SUBMIT, READ, SUBMIT) == [RECEIPT, COST, RECEIPT]
    assert came == ["proto", "json", "json"]


async def test_a_server_that_knows_protobuf_only_is_never_sent_json(colour):
    came = []
    assert await made(colour, served(came, only_protobuf), SUBMIT, READ, SUBMIT) == [RECEIPT, COST, RECEIPT]
    assert came == ["proto"] * 3


async def test_a_new_connection_begins_with_protobuf(colour):
    came = []
    assert await made(colour, served(came, offers, last=2), *[READ] * 5) == [COST] * 5
    assert came == ["proto", "json", "proto", "json", "proto"]


@pytest.mark.parametrize(
    "refusal",
    [
        fails(StatusCode.INVALID_ARGUMENT),
        fails(StatusCode.UNIMPLEMENTED),
        fails(StatusCode.INTERNAL),
        fails(StatusCode.UNKNOWN),
        no_such_type,
    ],
)
async def test_a_server_that_refuses_json_gets_protobuf_from_then_on(colour, refusal):
    """As one of an older version does, behind a proxy that has servers of both."""
    came = []
    behave = served(came, offers, offers, refusal, offers)
    assert await made(colour, behave, SUBMIT, SUBMIT, SUBMIT, SUBMIT) == [RECEIPT] * 4
    assert came == ["proto", "json", "json", "proto", "proto"]


@pytest.mark.parametrize("code", [StatusCode.INVALID_ARGUMENT, StatusCode.INTERNAL, StatusCode.UNAVAILABLE])
async def test_an_error_of_a_server_that_takes_json_is_the_answer(colour, code):
    came = []
    behave = served(came, offers, fails(code, known=True), offers)
    _, error, answer = await made(colour, behave, SUBMIT, SUBMIT, SUBMIT)
    assert (error.code, answer) == (code, RECEIPT)
    assert came == ["proto", "json", "json"]


async def test_what_may_have_been_applied_and_has_no_key_is_not_sent_twice(colour):
    came = []
    behave = served(came, offers, fails(StatusCode.INTERNAL), offers)
    _, error = await made(colour, behave, SUBMIT, SUBMIT, key="")
    assert (error.code, error.maybe_applied) == (StatusCode.INTERNAL, True)
    assert came == ["proto", "json"]


async def test_what_is_too_large_as_json_is_sent_as_protobuf(colour):
    came = []
    behave = served(came, offers, too_large, offers)
    assert await made(colour, behave, SUBMIT, SUBMIT, SUBMIT) == [RECEIPT] * 3
    assert came == ["proto", "json", "proto", "json"]


@pytest.mark.parametrize("second", [StatusCode.UNAUTHENTICATED, StatusCode.RESOURCE_EXHAUSTED])
async def test_what_may_have_been_applied_as_json_stays_so(colour, second):
    came = []
    behave = served(came, offers, fails(StatusCode.INTERNAL), fails(second))
    _, error = await made(colour, behave, SUBMIT, SUBMIT)
    assert (error.code, error.maybe_applied) == (second, True)
    assert came == ["proto", "json", "proto"]


async def test_an_answer_that_is_too_large_as_json_is_asked_for_as_protobuf(colour):
    came = []
    cost = GetCostResponse(data=CostRecord(usage_id="u" * 100, status="partial", currency="EUR"))
    limit = len(GET_COST.response.encode(cost))
    assert len(GET_COST.response.encode_json(cost)) > limit

    def answer(_message, _response, codec):
        return offers(GET_COST.response, cost, codec)

    behave = served(came, answer)
    assert await made(colour, behave, READ, READ, limit=limit) == [cost, cost]
    assert came == ["proto", "json", "proto"]


async def test_a_caller_does_not_choose_the_codec(colour):
    came = []
    pair = ("llm-cost-ops-codec", "json")
    assert await made(colour, served(came, offers), SUBMIT, SUBMIT, metadata=pair) == [RECEIPT] * 2
    assert came == ["proto", "json"]


async def test_a_refusal_with_a_status_of_grpc_is_one_too(colour):
    """As grpclib's servers answer: no handler saw the call, which has no key here."""
    came = []
    refusal = [(":status", "415"), ("grpc-status", "2")], None, None
    behave = served(came, offers, lambda *_: refusal, offers)
    assert await made(colour, behave, SUBMIT, SUBMIT, key="") == [RECEIPT] * 2
    assert came == ["proto", "json", "proto"]


async def test_a_server_may_answer_json_with_protobuf(colour):
    came = []
    head = [(":status", "200"), ("content-type", "application/grpc+proto")]

    def answer(message, response, _codec):
        return head, frame(message.encode(response)), [*DONE, OFFER]

    assert await made(colour, served(came, answer), SUBMIT, SUBMIT) == [RECEIPT] * 2
    assert came == ["proto", "json"]


async def test_unknown_fields_of_protobuf_are_sent_as_such(colour):
    newer = UsageRecord(organization_id="o", unknown_=Unknown(binary=b"\xc0\x3e\x05"))
    bodies = []

    def behave(connection):
        peer = Peer(connection)
        while True:
            stream = peer.read_request()
            bodies.append(peer.bodies[stream][5:])
            codec = "json" if "llm-cost-ops-codec" in peer.headers[stream] else "proto"
            peer.send(stream, *offers(SUBMIT_USAGE.response, RECEIPT, codec))

    request = SubmitUsageRequest(usage=newer)
    assert await made(colour, behave, SUBMIT, (SUBMIT_USAGE, request), SUBMIT) == [RECEIPT] * 3
    assert [body[:1] == b"{" for body in bodies] == [False, False, True]
    assert SUBMIT_USAGE.request.decode(bodies[1]) == request


@pytest.mark.parametrize("knows", [True, False])
async def test_a_stream_is_not_taken_for_answered_by_who_does_not_read_it(knows):
    """A server of an older version would find each record malformed, and say so."""
    came = []
    answer = StreamUsageResponse(durable=1)

    def behave(connection):
        peer = Peer(connection)
        peer.send(peer.read_request(), *offers(SUBMIT_USAGE.response, RECEIPT, "proto"))
        while True:
            stream = peer.read_request()
            came.append("json" if "llm-cost-ops-codec" in peer.headers[stream] else "proto")
            json = came[-1] == "json" and knows
            data = (STREAM_USAGE.response.encode_json if json else STREAM_USAGE.response.encode)(answer)
            peer.send(stream, [*HEAD, *([OFFER] if knows else [])], frame(data), DONE)

    async def requests():
        yield StreamUsageRequest(records=[UsageRecord(organization_id="o")])

    with FaultyPeer(behave) as peer:
        transport = AsyncGrpcTransport(f"grpc://127.0.0.1:{peer.port}")
        await transport.unary_unary(SUBMIT[1], context(SUBMIT_USAGE, MAX_WAIT, asynchronous=True))
        for attempt in range(2):
            about = context(STREAM_USAGE, MAX_WAIT, asynchronous=True, key="k")
            async with aclosing(transport.stream_stream(requests(), about)) as answers:
                if knows or attempt:
                    assert [each async for each in answers] == [answer]
                    continue
                with pytest.raises(RpcError) as caught:
                    await anext(answers)
                assert (caught.value.code, caught.value.maybe_applied) == (StatusCode.UNAVAILABLE, False)
        await transport.aclose()
    assert came == (["json", "json"] if knows else ["json", "proto"])
