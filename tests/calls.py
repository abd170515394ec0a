"""Channels over a scripted transport, with the tiny service's methods and virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_cost_ops.exceptions import error_from_rpc
from llm_cost_ops.rpc.channel import AsyncChannel, Channel
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.method import Cardinality, Idempotency, MethodDescriptor
from llm_cost_ops.testing import AsyncVirtualRuntime, ScriptedTransport, VirtualRuntime
from tests.tiny_service import PUT_NOTE, Note, PutNoteRequest, PutNoteResponse, codec

PUT = PutNoteRequest(note=Note(id="n"))
DONE = Note(id="n", text="done")


def fill_key(request: Any, key: str, make: Callable[[], str]) -> tuple[Any, str]:
    return request, key or make()


PUT_KEYED: MethodDescriptor[Any, Any] = MethodDescriptor(
    "tiny.v1.NoteService",
    "PutKeyed",
    cardinality=Cardinality.UNARY_UNARY,
    idempotency=Idempotency.UNKNOWN,
    request=codec(PutNoteRequest),
    response=codec(PutNoteResponse),
    validate=lambda message, path, violations: None,
    fill_key=fill_key,
    unwrap="data",
)


def sync_channel(script: Any, *interceptors: Any, seed: int = 0, **options: Any) -> Channel:
    transport = script if hasattr(script, "unary_unary") else ScriptedTransport(script)
    return Channel(
        transport,
        interceptors,
        **{"runtime": VirtualRuntime(seed), "public_error": error_from_rpc, **options},
    )


def async_channel(script: Any, *interceptors: Any, seed: int = 0, **options: Any) -> AsyncChannel:
    transport = script if hasattr(script, "unary_unary") else ScriptedTransport(script)
    return AsyncChannel(
        transport,
        interceptors,
        **{"runtime": AsyncVirtualRuntime(seed), "public_error": error_from_rpc, **options},
    )


def put(channel: Any, **options: Any) -> Any:
    return channel.unary_unary(PUT_NOTE, PUT, **options)


def context_of(channel: Any) -> CallContext:
    """The context of the channel's last call."""
    transport: ScriptedTransport = channel.core.transport
    return transport.calls[-1].context


def new_context(runtime: Any, method: Any = PUT_NOTE) -> CallContext:
    return CallContext(method, runtime, Metadata())
