"""The ASGI app without a server."""

from __future__ import annotations

import gzip
import json

import pytest

from llm_cost_ops.rpc.status import StatusCode
from llm_cost_ops.server.http import AsgiApp
from llm_cost_ops.server.limits import AsgiLimits
from tests.unit.server.note_servicer import NoteServicer
from tests.waiting import MAX_WAIT

JSON = {"content-type": "application/json"}


class Answer:
    def __init__(self, sent):
        self.status = sent[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        self.body = b"".join(message["body"] for message in sent[1:])

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


@pytest.fixture
def servicer():
    return NoteServicer()


@pytest.fixture
def ask(servicer):
    return asking(servicer)


def asking(servicer, call_timeout=MAX_WAIT):
    """What asks an app of the servicer."""
    app = AsgiApp(
        servicer.handler(),
        limits=AsgiLimits(max_body_bytes=1000, body_timeout=MAX_WAIT, call_timeout=call_timeout),
    )

    async def run(verb, target, body=b"", headers=None, chunks=None, **more):
        path, _, query = target.partition("?")
        pairs = headers.items() if isinstance(headers, dict) else headers or []
        scope = {
            "type": "http",
            "method": verb,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs],
            **more,
        }
        parts = list(chunks if chunks is not None else [body])
        messages = [
            {"type": "http.request", "body": p, "more_body": n < len(parts)} for n, p in enumerate(parts, 1)
        ]

        async def receive():
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        sent = []

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        return Answer(sent) if sent else None

    return run


async def test_a_call_comes_through(ask, servicer):
    headers = {**JSON, "X-Request-Id": "r-7", "Idempotency-Key": "k-1", "Grpc-Timeout": "50S", "X-Mine": "1"}
    answer = await ask("POST", "/api/v1/notes?owner=me", b'{"id": "n"}', headers)
    assert (answer.status, answer.json["data"]) == (201, {"id": "n"})
    assert answer.headers["x-request-id"] == "r-7"
    assert answer.json["meta"] == {"request_id": "r-7"}
    request, context = servicer.calls[0]
    assert (request.owner, request.note.id) == ("me", "n")
    assert (context.idempotency_key, context.metadata.get("idempotency-key")) == ("k-1", "k-1")
    assert context.metadata.get("x-mine") == "1"
    assert "content-type" not in context.metadata
    assert 0 < context.remaining() <= 50


async def test_a_servicer_may_set_the_status(ask):
    answer = await ask("POST", "/api/v1/notes", b'{"text": "duplicate"}', JSON)
    assert answer.status == 200


async def test_a_request_id_that_can_not_be_logged_is_replaced(ask):
    for given in ("", "a b", "x" * 200, "é"):
        answer = await ask("GET", "/api/v1/notes/n", headers={"x-request-id": given})
        assert answer.headers["x-request-id"] not in {"", given}


async def test_every_broken_rule_is_listed(ask):
    answer = await ask("POST", "/api/v1/notes", b'{"text": "invalid"}', JSON)
    assert answer.status == 400
    assert answer.error == {
        "code": "INVALID_ARGUMENT",
        "message": "no",
        "details": [{"field": "text", "description": "is wrong"}, {"field": "id", "description": "too"}],
    }
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    answer = await ask("GET", "/api/v1/notes?nope=1&page=x&page=2")
    assert {detail["field"] for detail in answer.error["details"]} == {"nope", "page"}


async def test_a_bug_tells_the_client_nothing(ask, caplog):
    answer = await ask("POST", "/api/v1/notes", b'{"text": "bug"}', JSON)
    assert (answer.status, answer.error["message"]) == (500, "internal error")
    assert b"secret" not in answer.body
    assert "a secret of the server" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text


async def test_hints_reach_the_client(ask):
    answer = await ask("POST", "/api/v1/notes", b'{"text": "busy"}', JSON)
    assert (answer.status, answer.headers["retry-after"], answer.headers["x-ratelimit-limit"]) == (
        429,
        "1",
        "5",
    )


@pytest.mark.parametrize("header", [{}, {"grpc-timeout": "50m"}, {"grpc-timeout": "9H"}])
async def test_a_call_ends_at_its_deadline(servicer, header):
    answer = await asking(servicer, call_timeout=0.2)(
        "POST", "/api/v1/notes", b'{"text": "wait"}', JSON | header
    )
    assert (answer.status, answer.error["code"]) == (504, "DEADLINE_EXCEEDED")
    assert servicer.finished == 0


@pytest.mark.parametrize(
    ("verb", "target", "status", "allow"),
    [
        ("GET", "/nothing", 404, None),
        ("GET", "/api/v1/notes/", 404, None),
        ("GET", "/api/v1/notes/a/copies", 405, "OPTIONS, POST"),
        ("DELETE", "/api/v1/notes", 405, "GET, HEAD, OPTIONS, POST"),
        ("OPTIONS", "/api/v1/notes", 204, "GET, HEAD, OPTIONS, POST"),
        ("HEAD", "/api/v1/notes/n", 200, None),
        ("HEAD", "/nothing", 404, None),
        ("GET", "/api/v1/notes/%ff", 400, None),
        ("GET", "/api/v1/notes/..%2F..%2Fetc", 200, None),
    ],
)
async def test_routing(ask, verb, target, status, allow):
    answer = await ask(verb, target)
    assert (answer.status, answer.headers.get("allow")) == (status, allow)
    assert bool(answer.body) is (verb not in {"HEAD", "OPTIONS"})
    if verb == "HEAD":
        assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b"", JSON, 400),
        (b"\xff", JSON, 400),
        (b"[" * 900, JSON, 400),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {"content-type": "application/vnd.x+json; charset=utf-8"}, 201),
        (b"{}", {}, 201),
        (b" " * 1001, JSON, 413),
        (b"{}", JSON | {"content-length": "1001"}, 413),
        (b"{}", JSON | {"content-encoding": "br"}, 415),
        (b"{}", JSON | {"content-encoding": "gzip"}, 400),
        (gzip.compress(b"{}", mtime=0), JSON | {"content-encoding": "gzip"}, 201),
        (gzip.compress(b"{}", mtime=0)[:-9], JSON | {"content-encoding": "gzip"}, 400),
        (gzip.compress(b"{}", mtime=0) + b"x", JSON | {"content-encoding": "gzip"}, 400),
        (gzip.compress(b" " * 2000, mtime=0), JSON | {"content-encoding": "gzip"}, 413),
        (b"{}", JSON | {"grpc-timeout": "soon"}, 400),
        (b"{}", JSON | {"grpc-timeout": "0m"}, 504),
        (b"{}", JSON | {"transfer-encoding": "chunked", "content-length": "2"}, 400),
        (b"{}", JSON | {"x-big": "a" * 40_000}, 431),
        (b"{}", JSON | {f"x-{n}": "a" for n in range(100)}, 400),
        (b"{}", JSON | {"x-binary-bin": "%%"}, 400),
    ],
)
async def test_bodies_and_headers(ask, servicer, body, headers, status):
    answer = await ask("POST", "/api/v1/notes", body, headers)
    assert answer.status == status, answer.body
    assert len(servicer.calls) == (status == 201)
    if status >= 400:
        code = answer.error["code"]
        assert code == "PAYLOAD_TOO_LARGE" if status == 413 else code in StatusCode.__members__


async def test_the_app_may_be_mounted_and_the_raw_path_missing(ask, servicer):
    assert (await ask("GET", "/costs/api/v1/notes/a%2Fb", root_path="/costs")).status == 200
    assert servicer.calls[-1][0].id == "a/b"
    assert (await ask("GET", "x", path="/api/v1/notes/50% é", raw_path=None)).status == 200
    assert servicer.calls[-1][0].id == "50% é"


async def test_a_client_that_goes_away_gets_nothing(ask, servicer):
    assert await ask("POST", "/api/v1/notes", headers=JSON, chunks=[]) is None
    assert servicer.calls == []


async def test_lifespan_closes_what_the_handler_holds(servicer):
    closed = []

    async def close():
        closed.append(1)

    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message["type"])

    await AsgiApp(servicer.handler(), close=close)({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert closed == [1]
