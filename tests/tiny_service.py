"""A service of tiny hand-made messages: the plumbing is tested with it, since it knows no message."""

from __future__ import annotations

import enum
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import msgspec

from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.method import (
    Cardinality,
    HttpRule,
    Idempotency,
    MessageCodec,
    MethodDescriptor,
    QueryField,
)
from llm_cost_ops.rpc.runtime import AsyncRuntime, SyncRuntime
from llm_cost_ops.wire import DecodeError


class Color(enum.Enum):
    UNSPECIFIED = "unspecified"
    RED = "red"
    BLUE = "blue"


class Note(msgspec.Struct, kw_only=True, omit_defaults=True):
    id: str = ""
    text: str = ""
    amount: Decimal | None = None
    count: int = 0


class PutNoteRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    note: Note | None = None
    owner: str = ""
    dry_run: bool = False


class PutNoteResponse(msgspec.Struct, kw_only=True):
    data: Note | None = None
    meta: dict[str, str] | None = None


class FindNotesRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    provider: list[str] = []
    label: dict[str, str] = {}
    count: list[int] = []
    page: int = 0
    page_size: int = 0
    ratio: float = 0.0
    exact: bool | None = None
    color: Color = Color.UNSPECIFIED
    colors: list[Color] = []
    text: str | None = None
    renamed: str = msgspec.field(default="", name="other_name")


class Pagination(msgspec.Struct, kw_only=True):
    page: int = 0
    page_size: int = 0
    per_page: int = 0
    total_items: int | None = None
    total_pages: int | None = None
    has_next: bool = False
    has_prev: bool = False
    next_cursor: str = ""


class FindNotesResponse(msgspec.Struct, kw_only=True):
    data: list[Note] = []
    pagination: Pagination | None = None


class GetNoteRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    id: str = ""


class CopyNoteRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    id: str = ""
    text: str = ""


def codec(kind: type[Any]) -> MessageCodec[Any]:
    """A codec on msgspec alone; its protobuf side is JSON too."""
    decoder = msgspec.json.Decoder(kind)

    def decode(data: bytes, *, unique: bool = False) -> Any:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError as error:
            reason, _, path = str(error).partition(" - at `$.")
            raise DecodeError(reason, path.rstrip("`")) from error
        except (ValueError, RecursionError) as error:
            raise DecodeError(str(error)) from error

    return MessageCodec(
        kind,
        f"tiny.v1.{kind.__name__}",
        encode=msgspec.json.encode,
        decode=decode,
        json=SimpleNamespace(encode=msgspec.json.encode, decode=decode),
    )


def method(
    name: str,
    request: type[Any],
    response: type[Any],
    verb: str,
    path: str,
    body: str | None = None,
    *,
    fields: tuple[QueryField, ...] = (),
    status: int = 200,
    body_codec: MessageCodec[Any] | None = None,
    unwrap: str | None = None,
) -> MethodDescriptor[Any, Any]:
    safe = Idempotency.NO_SIDE_EFFECTS if verb == "GET" else Idempotency.UNKNOWN
    return MethodDescriptor(
        "tiny.v1.NoteService",
        name,
        cardinality=Cardinality.UNARY_UNARY,
        idempotency=safe,
        request=codec(request),
        response=codec(response),
        validate=lambda message, path, violations: None,
        http=HttpRule(verb, path, body, status, fields, body_codec),
        unwrap=unwrap,
    )


def scalar(name: str, *aliases: str) -> QueryField:
    return QueryField(name, name, "scalar", aliases)


PUT_NOTE = method(
    "PutNote",
    PutNoteRequest,
    PutNoteResponse,
    "POST",
    "/api/v1/notes",
    "note",
    fields=(scalar("owner"), scalar("dry_run")),
    status=201,
    body_codec=codec(Note),
    unwrap="data",
)
FIND_NOTES = method(
    "FindNotes",
    FindNotesRequest,
    FindNotesResponse,
    "GET",
    "/api/v1/notes",
    fields=(
        QueryField("provider", "provider", "list"),
        QueryField("label", "label", "map"),
        QueryField("count", "count", "list"),
        scalar("page"),
        scalar("page_size", "per_page", "limit"),
        scalar("ratio"),
        scalar("exact"),
        scalar("color"),
        QueryField("colors", "colors", "list"),
        scalar("text"),
        QueryField("other_name", "renamed", "scalar"),
    ),
)
GET_NOTE = method(
    "GetNote",
    GetNoteRequest,
    PutNoteResponse,
    "GET",
    "/api/v1/notes/{id}",
    fields=(scalar("id"),),
    unwrap="data",
)
COPY_NOTE = method(
    "CopyNote",
    CopyNoteRequest,
    PutNoteResponse,
    "POST",
    "/api/v1/notes/{id}/copies",
    "*",
    fields=(scalar("id"), scalar("text")),
    unwrap="data",
)
METHODS = (PUT_NOTE, FIND_NOTES, GET_NOTE, COPY_NOTE)


def context(
    descriptor: MethodDescriptor[Any, Any],
    timeout: float | None = None,
    *,
    asynchronous: bool = False,
    key: str = "",
) -> CallContext:
    runtime = AsyncRuntime() if asynchronous else SyncRuntime()
    deadline = None if timeout is None else runtime.monotonic() + timeout
    return CallContext(descriptor, runtime, Metadata(), deadline, key)
