"""What one request may cost a server: who may not ask is refused before its body is decoded, the loop is
never held for long, and memory stays within a small multiple of the body.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import subprocess
import sys
from unittest import mock

import grpc
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops._gen.codecs import BATCH_SUBMIT_USAGE_RESPONSE
from llm_cost_ops._gen.messages import (
    BatchReceipt,
    BatchSubmitUsageResponse,
    GetCostSummaryResponse,
    SubmitResult,
    SubmitUsageResponse,
)
from llm_cost_ops._gen.methods import BATCH_SUBMIT_USAGE, GET_COST_SUMMARY, STREAM_USAGE, SUBMIT_USAGE
from llm_cost_ops.server import decoding
from llm_cost_ops.wire import DecodeError
from llm_cost_ops.wire.fields import walk
from llm_cost_ops.wire.varint import varint

BODY = 16 * 1024 * 1024
# Asked is 0.05 s, and quiet machines print half of that (pytest -rA). What holds the loop takes seconds.
MAX_HELD = 0.25
MAX_MEMORY = 8 * BODY
BATCH = "/api/v1/usage/batch"
STREAM = "/api/v1/usage/stream"
RECORD = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 10}


class MeasuredServer:
    """The process, and a client of each listener."""

    def __init__(self, path):
        command = [sys.executable, "-m", "tests.unit.server.measured_server", path]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        addresses = json.loads(self.process.stdout.readline())
        self.keys = addresses["keys"]
        self.http = httpx.Client(base_url=addresses["http"], timeout=120)
        target = addresses["grpc"].removeprefix("grpc://")
        self.channel = grpc.insecure_channel(target, [("grpc.max_receive_message_length", 1 << 28)])

    def post(self, path, body, *, role="writer", zipped=False, kind="application/json"):
        headers = {"authorization": f"Bearer {self.keys[role]}", "content-type": kind}
        if zipped:
            body, headers["content-encoding"] = gzip.compress(body, 6), "gzip"
        return self.http.post(path, content=body, headers=headers)

    def call(self, method, data, *, role="writer"):
        """(code, details or the bytes of the answer)"""
        metadata = [("authorization", f"Bearer {self.keys[role]}")]
        try:
            return grpc.StatusCode.OK, self.channel.unary_unary(method)(data, metadata=metadata, timeout=120)
        except grpc.RpcError as error:
            return error.code(), error.details()

    def measured(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.channel.close()
        self.http.close()
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    server = MeasuredServer(str(tmp_path_factory.mktemp("limits") / "costs.db"))
    # What is loaded with the first calls is no cost of those that are measured.
    assert server.post(BATCH, json.dumps({"records": [RECORD]}).encode()).status_code == 200
    assert server.call(BATCH_SUBMIT_USAGE.path, b"\n\x00")[0] is grpc.StatusCode.OK
    yield server
    server.close()


@pytest.fixture
def server(running):
    running.measured()
    return running


def costs_little(test):
    """A test whose server is looked at behind it. A busy machine has three tries, and needs them rarely."""

    @functools.wraps(test)
    def measured(server, **arguments):
        for _ in range(3):
            test(server, **arguments)
            found = server.measured()
            print({name: round(value, 4) for name, value in found.items()})  # noqa: T201  # the figures matter
            assert found["memory"] < MAX_MEMORY
            if found["held"] < MAX_HELD:
                return
        raise AssertionError(f"the loop was held for {found['held']:.3f} s")

    return measured


def records(count, size):
    """A batch in JSON of about `size` bytes in all."""
    one = {**RECORD, "labels": {"team": "search", "feature": "x"}, "metadata": {"note": ""}}
    one["metadata"]["note"] = "n" * (size // count - len(json.dumps(one)) - 2)
    return ('{"records": [' + ", ".join([json.dumps(one)] * count) + "]}").encode()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_reader_s_batch_is_refused_before_it_is_read(server, zipped):
    body = b'{"records":[' + b",".join([b"{}"] * 1_000_000) + b"]}"
    answer = server.post(BATCH, body, role="reader", zipped=zipped)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "PERMISSION_DENIED")


def test_a_reader_s_batch_over_grpc_is_refused_before_it_is_decoded(server):
    # It is no message at all: whoever decodes it says so.
    code, details = server.call(BATCH_SUBMIT_USAGE.path, b"\xff" * BODY, role="reader")
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "role writer" in details


@pytest.mark.parametrize("role", ["reader", "nobody"])
def test_a_call_that_is_not_allowed_learns_nothing_of_its_parameters(server, role):
    server.keys.setdefault("nobody", "lco_aaaaaaaa_" + "a" * 52)
    expected = 401 if role == "nobody" else 403
    assert server.post(BATCH + "?x=1", b"{", role=role).status_code == expected
    if role == "nobody":
        headers = {"authorization": f"Bearer {server.keys[role]}"}
        assert server.http.get("/api/v1/costs?group_by=moon", headers=headers).status_code == 401


@pytest.mark.parametrize("item", [b"{}", b"0", b'{"a":[', b"[]", b'"a"'], ids=repr)
def test_items_are_counted_before_they_are_decoded(server, item):
    body = b'{"records":[' + b",".join([item] * 1_000_000) + b"]}"
    answer = server.post(BATCH, body, zipped=True)
    assert answer.status_code == 400
    [violation] = answer.json()["error"]["details"]
    assert violation["field"] == "records"
    assert violation["description"].startswith(
        ("must hold at most 10,000 records", "must have at most 500,000")
    )


@pytest.mark.parametrize(
    "body",
    [
        lambda: b'{"records":[' + b",".join([b"0"] * 10_001) + b"]}",
        lambda: b'{"records":[' + b",".join([b"{}"] * 10_001) + b"]}",
        lambda: records(10_001, 8 * 1024 * 1024),
    ],
    ids=["numbers", "empty", "records"],
)
@costs_little
def test_item_10_001_is_refused(server, body):
    answer = server.post(BATCH, body())
    assert answer.status_code == 400
    assert "at most 10,000 records" in answer.json()["error"]["message"]


@costs_little
def test_ten_thousand_records_in_16_mb_hold_nobody_up(server):
    answer = server.post(BATCH, records(10_000, BODY - 100_000))
    assert answer.json()["data"]["created"] == 10_000


@pytest.mark.parametrize("item", [b"{}", b"0", b'{"tags":[' + b",".join([b'""'] * 40) + b"]}"], ids=len)
def test_ten_thousand_bad_records_hold_nobody_up(server, item):
    answer = server.post(BATCH, b'{"records":[' + b",".join([item] * 10_000) + b"]}")
    assert answer.json()["data"]["invalid"] == 10_000


@pytest.mark.parametrize(
    "body",
    [
        lambda: b'{"a":[' + b",".join([b"[]"] * 5_000_000) + b"]}",
        lambda: b"{" + b",".join(b'"%x":1' % n for n in range(1_500_000)) + b"}",
        lambda: b'{"records":[{' + b",".join(b'"%x":1' % n for n in range(1_500_000)) + b"}]}",
        lambda: b'{"records":[{"labels":{' + b",".join(b'"%x":""' % n for n in range(1_300_000)) + b"}}]}",
        lambda: b'{"records":[{"metadata":{"a":' + b"[" * 8_000_000 + b"]" * 8_000_000 + b"}}]}",
        lambda: b'{"records":[' + b'{"metadata":{"a":[' * 500_000,
        lambda: b'{"records":[' + b'"' * 15_000_000,
        lambda: b'{"records":["' + b"\\" * 15_000_000,
        lambda: b'{"records":[' + b" " * 15_000_000,
        lambda: b"[" * 15_000_000,
    ],
    ids=[
        "lists",
        "keys",
        "keys of a record",
        "labels",
        "deep",
        "unclosed",
        "quotes",
        "escapes",
        "blanks",
        "[",
    ],
)
@costs_little
def test_what_only_fills_memory_is_refused(server, body):
    answer = server.post(BATCH, body(), zipped=True)
    assert answer.status_code in {200, 400}
    if answer.status_code == 200:
        assert answer.json()["data"]["invalid"] == 1


@pytest.mark.parametrize("path", ["usage", "costs/estimate", "pricing"])
def test_other_bodies_are_small(server, path):
    answer = server.post(f"/api/v1/{path}", b'{"labels":{' + b" " * 300_000 + b"}}", zipped=True)
    assert answer.status_code in {403, 413} if path == "pricing" else answer.status_code == 413


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


MESSAGE = field(1, b"acme") + field(2, b"openai") + field(3, b"gpt-4o")


@pytest.mark.parametrize(
    "data",
    [
        lambda: b"\n\x00" * 8_000_000,
        lambda: b"\x8a\x00\x00" * 5_000_000,
        lambda: b"\n\x02\x08\x01" * 4_000_000,
        lambda: b"\x12\x00" * 8_000_000,
        lambda: field(1, field(19, b"") * 8_000_000),
        lambda: field(1, field(27, b"") * 5_000_000),
        lambda: b"".join(field(1, field(19, field(1, b"%x" % n))) for n in range(1_000_000)),
    ],
    ids=["empty", "long tags", "not text", "unknown", "meters", "field 27", "more than 10,000"],
)
@costs_little
def test_a_batch_over_grpc_that_only_fills_memory_is_refused(server, data):
    code, details = server.call(BATCH_SUBMIT_USAGE.path, data()[:BODY])
    if code is grpc.StatusCode.OK:
        assert BATCH_SUBMIT_USAGE_RESPONSE.decode(details).data.invalid == 1
    else:
        assert code is grpc.StatusCode.INVALID_ARGUMENT


@costs_little
def test_ten_thousand_records_over_grpc_hold_nobody_up(server):
    one = MESSAGE + field(32, b'"' + b"n" * 1500 + b'"')
    code, answer = server.call(BATCH_SUBMIT_USAGE.path, field(1, one) * 10_000)
    assert code is grpc.StatusCode.OK
    assert len(BATCH_SUBMIT_USAGE_RESPONSE.decode(answer).data.results) == 10_000


@costs_little
def test_blank_lines_hold_nobody_up(server):
    answer = server.post(STREAM, b"\n" * 200_000_000, zipped=True, kind="application/x-ndjson")
    assert answer.status_code == 400
    assert "more than 10,000 blank lines" in answer.json()["error"]["message"]


@costs_little
def test_lines_without_an_end_hold_nobody_up(server):
    answer = server.post(STREAM, b"x" * 200_000_000, zipped=True, kind="application/x-ndjson")
    assert answer.json()["problems"][0]["error"]["message"].startswith("is longer than 262144 bytes")


@costs_little
def test_a_stream_of_bad_lines_holds_nobody_up(server):
    body = (b'{"labels":{' + b",".join(b'"%x":""' % n for n in range(20_000)) + b"}}\n") * 50
    answer = server.post(STREAM, body, zipped=True, kind="application/x-ndjson")
    assert answer.status_code == 200


@costs_little
def test_a_stream_over_grpc_of_large_messages_holds_nobody_up(server):
    large = field(1, field(19, b"") * 100_000)
    metadata = [("authorization", f"Bearer {server.keys['writer']}")]
    stream = server.channel.stream_stream(STREAM_USAGE.path)
    answers = list(stream(iter([large] * 5), metadata=metadata, timeout=60))
    assert answers


BATCH_FIELD = decoding.BATCHES[BATCH_SUBMIT_USAGE.path]

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text('a"\\[]{},é', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\[]{},', max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(JSON_VALUES, max_size=5), st.booleans(), st.sampled_from([None, 0, 2]), st.integers(1, 9))
def test_a_list_is_cut_where_json_cuts_it(values, ascii_only, indent, window):
    text = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode()
    with mock.patch.object(decoding, "_WINDOW", window):
        parts = list(decoding._json_parts(text, 1))
    assert [last for _, _, last in parts] == [False] * (len(parts) - 1) + [True]
    cut = [text[start:stop] for start, stop, _ in parts]
    assert [json.loads(part) for part in cut if part.strip()] == values


@given(st.binary(max_size=30) | st.text('a"\\[]{},: ', max_size=30).map(str.encode))
def test_garbage_is_cut_or_refused(data):
    with contextlib.suppress(DecodeError):
        assert all(start <= stop for start, stop, _ in decoding._json_parts(data, 0))


@given(
    items=st.lists(st.sampled_from([b"", MESSAGE, field(99, b"x"), b"\x10\x01"]), max_size=5), data=st.data()
)
def test_a_batch_that_is_cut_is_the_same_batch(items, data):
    other = data.draw(st.sampled_from([b"", field(90, b"x"), b"\x8a\x80\x00" + b"\x00"]))
    sent = b"".join(field(1, item) + other for item in items)
    whole = BATCH_SUBMIT_USAGE.request.decode(sent)
    cut = decoding._protobuf_batch(BATCH_SUBMIT_USAGE.request, BATCH_FIELD, sent, 10_000)
    assert cut == whole


@given(
    st.lists(
        st.sampled_from(
            [field(1, MESSAGE), b"\x0a\x80\x00", b"\x8a\x00\x01x", field(90, b"x"), b"\x0a", b"\x00"]
        )
    ),
    st.binary(max_size=3),
)
def test_items_are_where_a_walk_through_all_fields_finds_them(parts, end):
    sent = b"".join(parts) + end
    try:
        expected = [(start, stop) for tag, start, stop in walk(sent, 0, len(sent)) if tag == 10]
    except (DecodeError, IndexError):
        with pytest.raises(DecodeError):
            decoding._protobuf_items(BATCH_FIELD, sent, 10_000)
    else:
        assert decoding._protobuf_items(BATCH_FIELD, sent, 10_000)[0] == expected


@pytest.mark.parametrize(
    ("created", "duplicates", "invalid", "long"),
    [(0, 0, 0, False), (511, 1, 0, False), (513, 0, 0, True), (511, 0, 1, True)],
)
def test_only_an_answer_of_many_receipts_or_an_error_is_encoded_outside_the_loop(
    created, duplicates, invalid, long
):
    results = [SubmitResult()] * (created + duplicates + invalid)
    receipt = BatchReceipt(results=results, created=created, duplicates=duplicates, invalid=invalid)
    answer = BatchSubmitUsageResponse(data=receipt)
    assert decoding.is_long_answer(BATCH_SUBMIT_USAGE, answer, 512) is long


def test_the_answers_that_may_be_long_are_encoded_outside_the_loop():
    assert decoding.is_long_answer(GET_COST_SUMMARY, GetCostSummaryResponse(), 512)
    assert not decoding.is_long_answer(SUBMIT_USAGE, SubmitUsageResponse(), 512)


@given(
    st.lists(st.sampled_from([b"{}", b'{"provider":"a"}', b'{"x":1}', b"0", b'{"labels":{"a":"1","a":"2"}}']))
)
def test_a_json_batch_that_is_cut_is_the_same_batch(items):
    sent = b'{ "records" : [ ' + b" , ".join(items) + b' ], "later": 1 }'
    codec = BATCH_SUBMIT_USAGE.request
    cut = decoding._json_batch(codec, BATCH_FIELD, sent, 10_000)
    assert cut == codec.decode_json(sent, unique=True)


@pytest.mark.parametrize("tags", [50, 51])
def test_a_batch_over_grpc_has_as_many_values_as_it_may(tags):
    sent = field(1, field(27, b"") * tags) + field(1, field(27, b"") * 50)
    batch = BATCH_FIELD._replace(max_values=100)
    if tags == 50:
        cut = decoding._protobuf_batch(BATCH_SUBMIT_USAGE.request, batch, sent, 10_000)
        assert [len(record.tags) for record in cut.records] == [50, 50]
    else:
        with pytest.raises(DecodeError, match="at most 100 values"):
            decoding._protobuf_batch(BATCH_SUBMIT_USAGE.request, batch, sent, 10_000)


RECORDS = st.fixed_dictionaries(
    {"organization_id": st.text('a"\\[]{},:é', max_size=9)},
    optional={
        "tags": st.lists(st.sampled_from(['},{"organization_id":"', ",", "]"]), max_size=2),
        "labels": st.dictionaries(st.text('a"},', max_size=3), st.text('a"},', max_size=3), max_size=2),
        "metadata": st.fixed_dictionaries({"calls": st.lists(st.just({"organization_id": ""}), max_size=2)}),
        "timestamp": st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01T02:00:00+02:00"]),
        "newer": st.just(1),
    },
)
DAMAGE = [b"", b",", b",\x0b", b",0,", b",,", b"]", b"],[", b'],"records":[', b",]}", b", \n", b" , ,"]


def outcome(data, limit=300):
    try:
        return decoding._json_batch(BATCH_SUBMIT_USAGE.request, BATCH_FIELD, data, limit)
    except DecodeError as error:
        return str(error)


@given(
    st.lists(RECORDS, min_size=1, max_size=9),
    st.sampled_from([(",", ":"), (", ", ": "), (",\n\t", ":")]),
    st.integers(20, 200),
)
def test_records_that_are_decoded_together_are_as_each_by_itself(records, separators, size):
    sent = json.dumps({"records": records}, separators=separators).encode()
    with mock.patch.object(decoding, "_in_pieces", return_value=None):
        expected = outcome(sent)
    with mock.patch.object(decoding, "_PIECE", size):
        assert outcome(sent) == expected


@pytest.mark.parametrize("size", [25, 30, 60])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("where", range(5))
def test_what_is_between_records_that_are_decoded_together_is_as_before(where, damage, size):
    records = [b'{"organization_id":"a"}'] * 4
    commas = [b"", b",", b",", b",", b""]
    commas[where] = damage
    between = [comma + record for comma, record in zip(commas, [*records, b""], strict=True)]
    sent = b'{"records":[' + b"".join(between) + b"]}"
    with mock.patch.object(decoding, "_in_pieces", return_value=None):
        expected = outcome(sent)
    with mock.patch.object(decoding, "_PIECE", size):
        assert outcome(sent) == expected


def test_a_large_batch_of_nothing_but_a_comma_is_malformed():
    assert isinstance(outcome(b'{"records":[,' + b" " * 400 + b"]}"), str)


@pytest.mark.parametrize("begin", [b"%s,%s{},{}", b"{},%s,%s{}"])
def test_a_large_batch_without_a_colon_is_as_before(begin):
    sent = b'{"records":[' + begin % (b" " * 100, b" " * 100) + b"]}"
    with mock.patch.object(decoding, "_PIECE", 60):
        assert isinstance(outcome(sent), str)


def test_more_objects_than_records_have_are_not_decoded_at_once():
    decoded = mock.Mock(return_value=None)
    sent = b'{"records":[{"a":1}' + b",{}" * 30_000 + b',{"a":1}]}'
    with mock.patch.object(decoding, "decode_list_quickly", decoded):
        outcome(sent)
    assert all(call.args[1].count(b"{") <= 8000 for call in decoded.call_args_list)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_no_record_of_a_large_batch_is_decoded_alone(separators):
    records = [RECORD | {"metadata": {"calls": [{}, {}]}, "tags": [f"{n}"]} for n in range(3000)]
    sent = json.dumps({"records": records}, separators=separators).encode()
    with mock.patch.object(decoding, "_json_item", side_effect=AssertionError):
        request = decoding._json_batch(BATCH_SUBMIT_USAGE.request, BATCH_FIELD, sent, 256 * 1024)
    assert [record.tags for record in request.records] == [[f"{n}"] for n in range(3000)]


@pytest.mark.parametrize("cut_at", [200, 10_000])
def test_records_beyond_the_most_that_a_batch_may_have_are_refused_however_it_is_cut(cut_at):
    fewer = BATCH_FIELD._replace(max_items=20)
    sent = json.dumps({"records": [RECORD] * 21}).encode()
    with (
        mock.patch.object(decoding, "_PIECE", cut_at),
        pytest.raises(DecodeError, match="at most 20 records"),
    ):
        decoding._json_batch(BATCH_SUBMIT_USAGE.request, fewer, sent, 10_000)


def spans(count, size):
    """A request of spans in JSON, calls with long texts, of about `size` bytes."""
    counts = {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 5}
    stated = {"gen_ai.system": "openai", "gen_ai.request.model": "gpt-4o"}
    stated["gen_ai.prompt"] = "x" * (size // count - 600)
    attributes = [{"key": key, "value": {"intValue": value}} for key, value in counts.items()]
    attributes += [{"key": key, "value": {"stringValue": value}} for key, value in stated.items()]
    found = [{"traceId": f"{n:032x}", "spanId": f"{n:016x}", "attributes": attributes} for n in range(count)]
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": found}]}]}).encode()


@pytest.mark.slow
@costs_little
def test_spans_in_16_mb_hold_nobody_up(server):
    answer = server.http.post(
        "/v1/traces",
        content=spans(5000, BODY - 200_000),
        headers={
            "authorization": f"Bearer {server.keys['writer']}",
            "content-type": "application/json",
            "x-lco-organization": "acme",
        },
    )
    assert (answer.status_code, answer.json()) == (200, {})


IN_SPANS = b'{"resourceSpans":[{"scopeSpans":[{"spans":[%s]}]}]}'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("json", lambda: IN_SPANS % b",".join([b"1"] * 8_000_000)),
        ("json", lambda: IN_SPANS % b",".join([b"{}"] * 5_000_000)),
        (
            "json",
            lambda: IN_SPANS % (b'{"x":"gen_ai.","attributes":[' + b",".join([b"1"] * 7_000_000) + b"]}"),
        ),
        ("json", lambda: b'{"resourceSpans":' + b"[" * 15_000_000),
        ("json", lambda: b'{"resourceSpans":"' + b"x" * 15_000_000),
        ("x-protobuf", lambda: b"\x12\x00" * 8_000_000),
        ("x-protobuf", lambda: b"\x0a\x00" * 8_000_000),
        ("x-protobuf", lambda: b"\x0a" + varint(15_000_000) + b"\x12\x00" * 7_500_000),
        (
            "x-protobuf",
            lambda: b"\x0a" + varint(15_000_005) + b"\x12" + varint(15_000_000) + b"\x12\x00" * 7_500_000,
        ),
    ],
    ids=["numbers", "objects", "attributes", "deep", "text", "unknown", "resources", "scopes", "spans"],
)
@pytest.mark.slow
@costs_little
def test_hostile_spans_hold_nobody_up(server, kind, body):
    headers = {"authorization": f"Bearer {server.keys['writer']}", "content-type": f"application/{kind}"}
    assert server.http.post("/v1/traces", content=body(), headers=headers).status_code == 400
