"""The in-process transport."""

from __future__ import annotations

import pytest

from llm_cost_ops.rpc.context import Metadata, drive
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.transports.inprocess import InProcessTransport
from tests.tiny_service import (
    GET_NOTE,
    PUT_NOTE,
    GetNoteRequest,
    Note,
    PutNoteRequest,
    PutNoteResponse,
    context,
)
from tests.waiting import MAX_WAIT

PUT = PutNoteRequest(note=Note(id="n"))


def leaf_of(implementation):
    return InProcessTransport(ServiceHandler([(PUT_NOTE, implementation)]))


def test_the_server_has_a_context_of_its_own():
    seen = []

    async def put(request, served):
        seen.append(served)
        assert request is PUT
        served.metadata.add("added", "1")
        served.response_metadata = Metadata({"x-told": "2"})
        return PutNoteResponse(data=request.note)

    ctx = context(PUT_NOTE, MAX_WAIT, key="k")
    ctx.metadata.add("mine", "0")
    assert drive(leaf_of(put).unary_unary(PUT, ctx)).data.id == "n"
    (served,) = seen
    assert served.metadata.get("mine") == "0"
    assert "added" not in ctx.metadata
    assert (served.deadline, served.idempotency_key, served.request_id) == (ctx.deadline, "k", ctx.request_id)
    assert ctx.request_id
    assert ctx.response_metadata.get("x-told") == "2"
    assert ctx.response_status == 201


async def test_it_is_the_same_under_asyncio():
    async def put(request, served):
        await served.runtime.sleep(0)
        served.response_status = 200
        return PutNoteResponse(data=request.note)

    ctx = context(PUT_NOTE, MAX_WAIT, asynchronous=True)
    assert (await leaf_of(put).unary_unary(PUT, ctx)).data.id == "n"
    assert ctx.response_status == 200


def test_errors_carry_the_request_id_and_bugs_stay_inside(caplog):
    async def put(request, served):
        if served.idempotency_key:
            raise RpcError(StatusCode.ALREADY_EXISTS, "used")
        raise KeyError("secret")

    ctx = context(PUT_NOTE, key="k")
    with pytest.raises(RpcError) as raised:
        drive(leaf_of(put).unary_unary(PUT, ctx))
    assert (raised.value.code, raised.value.request_id) == (StatusCode.ALREADY_EXISTS, ctx.request_id)
    with pytest.raises(RpcError) as raised:
        drive(leaf_of(put).unary_unary(PUT, context(PUT_NOTE)))
    assert (raised.value.code, raised.value.message) == (StatusCode.INTERNAL, "internal error")
    assert isinstance(raised.value.__cause__, KeyError)
    assert raised.value.request_id in caplog.text


def test_a_passed_deadline_and_an_unknown_method_reach_no_servicer():
    async def put(request, served):
        raise AssertionError("called")

    with pytest.raises(RpcError) as raised:
        drive(leaf_of(put).unary_unary(PUT, context(PUT_NOTE, 0)))
    assert raised.value.code is StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(RpcError) as raised:
        drive(leaf_of(put).unary_unary(GetNoteRequest(id="n"), context(GET_NOTE)))
    assert raised.value.code is StatusCode.UNIMPLEMENTED


def test_closing_happens_once():
    closed = []

    async def close():
        closed.append(1)

    transport = InProcessTransport(ServiceHandler([]), close)
    drive(transport.aclose())
    drive(transport.aclose())
    assert closed == [1]
