"""The interceptor that asks for keys: what passes, and what a stream does when its key is revoked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from llm_cost_ops._gen.methods import EXPORT_USAGE, GET_HEALTH, GET_READINESS, STREAM_USAGE
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.rpc.context import CallContext, Metadata, drive
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service.access.authentication import Authentication
from llm_cost_ops.service.access.keys import create_key, revoke_key
from llm_cost_ops.service.access.tenancy import Principal, Role, Tenancy
from llm_cost_ops.testing import VirtualRuntime


@pytest.fixture
def store() -> Iterator[SqliteLedger]:
    store = SqliteLedger()
    yield store
    drive(store.aclose())


def context(method: Any, key: str = "") -> CallContext:
    metadata = Metadata({"authorization": f"Bearer {key}"} if key else {})
    return CallContext(method, VirtualRuntime(), metadata)


def create(store: SqliteLedger) -> tuple[Any, str]:
    asked = CallContext(GET_HEALTH, SyncRuntime(), Metadata())
    return drive(create_key(store.keys, asked, organizations=["acme"]))


async def answer(request: Any, context: CallContext) -> Any:
    return context.principal


def test_health_alone_needs_no_key(store: SqliteLedger) -> None:
    gate = Authentication(store.keys, required=True)
    for method in (GET_HEALTH, GET_READINESS):
        assert drive(gate.intercept_unary_unary(answer, None, context(method))) is None
    with pytest.raises(RpcError) as caught:
        drive(gate.intercept_unary_unary(answer, None, context(EXPORT_USAGE)))
    assert caught.value.code is StatusCode.UNAUTHENTICATED


def test_a_store_without_keys_is_open_unless_told_otherwise(store: SqliteLedger) -> None:
    gate = Authentication(store.keys, required=False)
    assert drive(gate.intercept_unary_unary(answer, None, context(EXPORT_USAGE))) is None
    _, key = create(store)
    assert drive(gate.intercept_unary_unary(answer, None, context(EXPORT_USAGE, key))).role is Role.WRITER
    with pytest.raises(RpcError):
        drive(gate.intercept_unary_unary(answer, None, context(EXPORT_USAGE)))


def test_a_call_of_an_open_store_asks_it_once(store: SqliteLedger) -> None:
    asked = []

    class Keys:
        async def any(self, context: CallContext) -> bool:
            asked.append(context)
            return await store.keys.any(context)

    gate, call = Authentication(cast("Any", Keys()), required=False), context(EXPORT_USAGE)
    # A server does so before it reads the request, and the interceptor after that.
    drive(gate.admit(call))
    assert drive(gate.intercept_unary_unary(answer, None, call)) is None
    assert asked == [call]
    create(store)
    with pytest.raises(RpcError):
        drive(gate.admit(context(EXPORT_USAGE)))


async def test_a_stream_of_answers_ends_when_its_key_is_revoked(store: SqliteLedger) -> None:
    made, key = create(store)
    call = context(EXPORT_USAGE, key)
    closed = []

    async def numbers(request: Any, context: CallContext) -> Any:
        try:
            for number in range(100):
                yield number
        finally:
            closed.append(True)

    gate = Authentication(store.keys, required=True)
    async with aclosing(gate.intercept_unary_stream(numbers, None, call)) as stream:
        assert await anext(stream) == 0
        await revoke_key(store.keys, made.id, call)
        assert await anext(stream) == 1, "it is looked up once a second"
        call.runtime.advance(1.1)
        with pytest.raises(RpcError) as caught:
            await anext(stream)
    assert caught.value.code is StatusCode.UNAUTHENTICATED
    assert closed == [True]


async def test_an_answer_that_took_long_is_not_for_a_key_revoked_meanwhile(store: SqliteLedger) -> None:
    made, key = create(store)
    call = context(EXPORT_USAGE, key)

    async def slow(request: Any, context: CallContext) -> Any:
        await revoke_key(store.keys, made.id, call)
        call.runtime.advance(1.1)
        yield "records"

    with pytest.raises(RpcError) as caught:
        await anext(Authentication(store.keys, required=True).intercept_unary_stream(slow, None, call))
    assert caught.value.code is StatusCode.UNAUTHENTICATED


async def test_nothing_is_taken_from_a_stream_whose_key_was_revoked_while_it_was_silent(
    store: SqliteLedger,
) -> None:
    made, key = create(store)
    call = context(STREAM_USAGE, key)
    taken = []

    async def requests() -> Any:
        yield "in force"
        await revoke_key(store.keys, made.id, call)
        yield "within the second"
        call.runtime.advance(600)
        yield "revoked long ago"

    async def servicer(requests: Any, context: CallContext) -> Any:
        try:
            async for request in requests:
                taken.append(request)
                yield request
        except RpcError:
            yield "what was written meanwhile"
            raise

    gate = Authentication(store.keys, required=True)
    async with aclosing(gate.intercept_stream_stream(servicer, requests(), call)) as stream:
        answers = [await anext(stream) for _ in range(3)]
        with pytest.raises(RpcError) as caught:
            await anext(stream)
    assert caught.value.code is StatusCode.UNAUTHENTICATED
    assert taken == ["in force", "within the second"]
    assert answers == [*taken, "what was written meanwhile"], "answers about what was written are let through"


async def test_a_stream_needs_a_key_before_its_first_message(store: SqliteLedger) -> None:
    gate = Authentication(store.keys, required=True)

    async def numbers(request: Any, context: CallContext) -> Any:
        raise AssertionError("it was called")
        yield 0

    for kind in (gate.intercept_unary_stream, gate.intercept_stream_stream):
        with pytest.raises(RpcError, match="a valid API key"):
            await anext(kind(numbers, None, context(EXPORT_USAGE)))


def test_a_method_without_a_rule_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_cost_ops.service.access.tenancy.RULES", {})
    call = context(EXPORT_USAGE)
    call.principal = Principal(key_id="a", role=Role.ADMIN, organizations=None)
    with pytest.raises(RpcError, match="no API key may call ExportUsage") as caught:
        drive(Tenancy().intercept_unary_unary(answer, None, call))
    assert caught.value.code is StatusCode.PERMISSION_DENIED
