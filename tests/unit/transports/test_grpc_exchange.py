"""What goes over the wire with a gRPC call, and what its status means: against scripted answers."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.transports.grpc.client import GrpcTransport
from llm_cost_ops.transports.grpc.status import block, number, read_status, write_status
from tests.faulty_grpc_peers import DONE, GOOD, GZIP, HEAD, Http2, answering, frame
from tests.faulty_peers import FaultyPeer
from tests.tiny_service import GET_NOTE, PUT_NOTE, GetNoteRequest, Note, PutNoteRequest, context
from tests.waiting import MAX_WAIT

PUT = PutNoteRequest(note=Note(id="n"))


def answer_to(*answer, made=None, method=PUT_NOTE, request=PUT):
    made = made or context(method, 5.0)
    with FaultyPeer(answering(answer)) as peer:
        transport = GrpcTransport(f"grpc://127.0.0.1:{peer.port}")
        try:
            return drive(transport.unary_unary(request, made))
        except RpcError as error:
            return error
        finally:
            drive(transport.aclose())


@pytest.mark.parametrize("code", StatusCode)
@pytest.mark.parametrize("method", [PUT_NOTE, GET_NOTE])
def test_every_status(code, method):
    if code is StatusCode.OK:
        return
    request = PUT if method is PUT_NOTE else GetNoteRequest(id="n")
    error = answer_to(
        [*HEAD, ("grpc-status", str(int(code))), ("grpc-message", "caf%C3%A9%")],
        method=method,
        request=request,
    )
    assert (error.code, error.message, error.origin) == (code, "café%", "server")
    unsure = {"CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
    assert error.maybe_applied is (method is PUT_NOTE and code.name in unsure)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("SERVER: Received message larger than max (67326300 vs. 33554432)", StatusCode.INVALID_ARGUMENT),
        ("grpc: received message larger than max (5 vs. 4)", StatusCode.INVALID_ARGUMENT),
        ("gRPC message exceeds maximum size 4194304: 5000000", StatusCode.INVALID_ARGUMENT),
        ("grpc: received message after decompression larger than max (5 vs. 4)", StatusCode.INVALID_ARGUMENT),
        ("Received message exceeds the maximum configured message size.", StatusCode.INVALID_ARGUMENT),
        ("too many calls", StatusCode.RESOURCE_EXHAUSTED),
        ("request rate exceeds the maximum of 100 per second", StatusCode.RESOURCE_EXHAUSTED),
        ("Quota exceeded: usage exceeds maximum requests per minute", StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_a_message_that_is_too_large_is_no_limit_of_a_rate(words, code):
    error = answer_to([*HEAD, ("grpc-status", "8"), ("grpc-message", words)])
    assert (error.code, error.message, error.maybe_applied) == (code, words, False)
    assert error.error_code == ("PAYLOAD_TOO_LARGE" if code is StatusCode.INVALID_ARGUMENT else "")


@pytest.mark.parametrize("words", [[], [("grpc-message", "CANCELLED")]])
def test_a_server_that_cancels_without_a_word_is_going_away(words):
    error = answer_to([*HEAD, ("grpc-status", "1"), *words])
    assert (error.code, error.origin, error.maybe_applied) == (StatusCode.UNAVAILABLE, "network", True)


@pytest.mark.parametrize("status", ["17", "99999999"])
def test_a_status_of_the_future_is_unknown(status):
    assert answer_to(HEAD, b"", [("grpc-status", status)]).code is StatusCode.UNKNOWN


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("400", StatusCode.INTERNAL),
        ("401", StatusCode.UNAUTHENTICATED),
        ("403", StatusCode.PERMISSION_DENIED),
        ("404", StatusCode.UNIMPLEMENTED),
        ("429", StatusCode.UNAVAILABLE),
        ("502", StatusCode.UNAVAILABLE),
        ("503", StatusCode.UNAVAILABLE),
        ("504", StatusCode.UNAVAILABLE),
        ("302", StatusCode.UNKNOWN),
        ("500", StatusCode.UNKNOWN),
    ],
)
def test_a_gateway_that_speaks_http(status, code):
    error = answer_to([(":status", status), ("content-type", "text/html")], b"<html>")
    assert error.code is code
    assert status in error.message


def test_metadata_both_ways():
    made = context(PUT_NOTE, MAX_WAIT, key="k-1")
    made.request_id = "r-1"
    for name, value in [("x-tag", "a"), ("x-tag", "b"), ("user-agent", "mine/1"), ("x-raw-bin", b"\x00\xff")]:
        made.metadata.add(name, value)
    made.metadata.add("grpc-timeout", "1H")
    made.metadata.add("te", "gzip")
    seen = {}

    def behave(connection):
        peer = Http2(connection)
        stream = peer.read_request()
        seen.update(peer.headers[stream])
        head = [*HEAD, ("x-first", "1"), ("x-raw-bin", "AP8,/w==")]
        peer.send(stream, head, frame(GOOD), [*DONE, ("x-request-id", "r-2"), ("x-last", "2")])
        peer.wait()

    with FaultyPeer(behave) as peer:
        transport = GrpcTransport(f"grpc://127.0.0.1:{peer.port}")
        assert drive(transport.unary_unary(PUT, made)).data.id == "n"
        drive(transport.aclose())
    assert seen.pop(":authority") == f"127.0.0.1:{peer.port}"
    assert seen.pop("grpc-timeout").endswith("u") or True
    assert seen == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/tiny.v1.NoteService/PutNote",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "mine/1",
        "idempotency-key": "k-1",
        "x-request-id": "r-1",
        "x-tag": "b",
        "x-raw-bin": "AP8",
    }
    got = made.response_metadata
    assert got.get_all("x-raw-bin") == [b"\x00\xff", b"\xff"]
    assert (got.get("x-first"), got.get("x-last"), made.request_id) == ("1", "2", "r-2")
    assert not [name for name, _ in got if name.startswith(("grpc-", ":", "content-type"))]


def test_details_of_an_error():
    told = RpcError(
        StatusCode.INVALID_ARGUMENT,
        "bad",
        violations=[Violation("note.id", "too long"), Violation("ü", "é")],
        retry_after=1.5,
        error_code="NO_ROOM",
    )
    details = base64.b64encode(write_status(told, "bad", "r-9")).decode().rstrip("=")
    error = answer_to(
        HEAD, b"", [("grpc-status", "3"), ("grpc-message", "bad"), ("grpc-status-details-bin", details)]
    )
    assert error.violations == told.violations
    assert (error.retry_after, error.error_code, error.request_id) == (1.5, "NO_ROOM", "r-9")


@pytest.mark.parametrize(
    ("trailers", "hint"),
    [
        ([("grpc-retry-pushback-ms", "1500")], 1.5),
        ([("grpc-retry-pushback-ms", "-1")], -1.0),
        ([("grpc-retry-pushback-ms", "soon")], -1.0),
        ([("grpc-retry-pushback-ms", "9" * 14)], 86400.0),
        ([("retry-after", "3")], 3.0),
        ([("grpc-status-details-bin", "!!!")], None),
        ([("grpc-status-details-bin", "AAAA")], None),
        ([], None),
    ],
)
def test_hints_when_to_come_again(trailers, hint):
    error = answer_to([*HEAD, ("grpc-status", "14"), *trailers])
    assert (error.code, error.retry_after) == (StatusCode.UNAVAILABLE, hint)


def test_a_compressed_answer_is_read_although_nobody_asked_for_it():
    import gzip

    assert answer_to(GZIP, frame(gzip.compress(GOOD), 1), DONE).data.id == "n"
    assert answer_to(GZIP, frame(GOOD), DONE).data.id == "n"


def test_other_spellings_of_the_content_type():
    for kind in ("application/grpc+proto", "application/grpc;charset=utf-8"):
        assert answer_to([(":status", "200"), ("content-type", kind)], frame(GOOD), DONE).data.id == "n"


@given(st.binary(max_size=200))
def test_any_bytes_for_details(data):
    details = read_status(data)
    assert details.retry_after is None or 0 <= details.retry_after <= 86400


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_any_duration_for_a_retry_delay(seconds, nanos):
    retry = block(1, b"type.googleapis.com/google.rpc.RetryInfo") + block(
        2, block(1, number(1, seconds) + number(2, nanos))
    )
    assert 0 <= read_status(block(3, retry)).retry_after <= 86400


@given(st.lists(st.tuples(st.text(), st.text()), max_size=50), st.text(max_size=50), st.floats(0, 86400))
def test_details_round_trip_within_the_size_of_trailers(pairs, code, seconds):
    error = RpcError(
        StatusCode.ABORTED, "m", violations=[Violation(*pair) for pair in pairs], retry_after=seconds
    )
    error.error_code = code
    data = write_status(error, "m", "r")
    details = read_status(data)
    assert len(data) < 5000
    assert (
        details.violations
        == [Violation(*(text.encode("utf-8", "replace").decode() for text in pair)) for pair in pairs][
            : len(details.violations)
        ]
    )
    assert details.error_code == code.encode("utf-8", "replace").decode()
    assert abs(details.retry_after - seconds) < 1e-6
