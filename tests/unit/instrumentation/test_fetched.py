"""What is fetched later: answers made in the background, and the results of batches."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops import ClientConfig, CostOpsClient, RecorderConfig
from llm_cost_ops.instrumentation.calls import Call, Options
from llm_cost_ops.instrumentation.fetched import Background, ResultLines
from llm_cost_ops.types import UsageQuality, UsageRecord
from tests.sdk_stub import Stub
from tests.unit.instrumentation.matrix import only_record, records_of
from tests.waiting import MAX_WAIT

ASKED = {"model": "gpt-4o", "input": "hi", "background": True}


class Kept:
    """A sink that builds at once."""

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []

    def observe(self, build: Callable[[], UsageRecord], attributes: Any) -> None:
        self.records.append(build())

    observe_abandoned = observe

    def expect(self) -> None:
        """Nothing is to be made ready."""


def options(sink: Kept, provider: str = "openai") -> Options:
    return Options(sink=sink, attributes=dict, provider=provider)


def ask(stub: Stub, sdk: httpx.Client) -> str:
    found: str = sdk.post(f"{stub.url}/v1/responses", json=ASKED).json()["id"]
    return found


def fetch(stub: Stub, sdk: httpx.Client, name: str) -> None:
    for _ in range(2):
        sdk.get(f"{stub.url}/v1/responses/{name}")


def test_it_is_whose_it_was_when_it_was_asked_for(stub: Stub, client: CostOpsClient) -> None:
    with client.instrument(httpx.Client(), provider="openai") as sdk:
        with client.attribute(user_id="asks", labels={"a": "1"}):
            name = ask(stub, sdk)
        assert records_of(client) == []
        with client.attribute(user_id="fetches"):
            fetch(stub, sdk, name)
    record = only_record(client, "usage")
    assert (record.user_id, record.labels) == ("asks", {"a": "1"})
    assert record.idempotency_key == f"openai:{name}"
    assert record.latency_ms is None


def test_a_server_of_ones_own_is_recorded_once_by_who_asked(stub: Stub, client: CostOpsClient) -> None:
    """Its ids are not known to be unique, so what was asked for elsewhere is not recorded."""
    with client.instrument(httpx.Client()) as sdk:
        name = ask(stub, sdk)
        fetch(stub, sdk, name)
        fetch(stub, sdk, name)
        fetch(stub, sdk, "resp_elsewhere")
    assert name not in only_record(client, "usage").idempotency_key


def test_what_nobody_fetches_is_unknown_when_its_client_is_gone(stub: Stub, client: CostOpsClient) -> None:
    with client.instrument(httpx.Client()) as sdk:
        ask(stub, sdk)
    assert records_of(client) == []
    del sdk
    gc.collect()
    assert only_record(client, "unknown").model_id == "gpt-4o"


PROGRAM = """
import httpx, llm_cost_ops
sdk = llm_cost_ops.instrument(httpx.Client())
sdk.post("URL/v1/responses", json={"model": "gpt-4o", "input": "hi", "background": True})
if FORKS:
    import os
    child = os.fork()
    if child:
        os.waitpid(child, 0)
"""


@pytest.mark.parametrize("forks", [False, True])
def test_what_nobody_fetches_is_unknown_when_the_process_ends(
    forks: bool, stub: Stub, tmp_path: Path
) -> None:
    environment = {
        "LLM_COST_OPS_BASE_URL": f"sqlite:///{tmp_path}/costs.db",
        "LLM_COST_OPS_ORGANIZATION_ID": "acme",
        "PYTHONPATH": ":".join(sys.path),
    }
    code = PROGRAM.replace("URL", stub.url).replace("FORKS", str(forks))
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=2 * MAX_WAIT)
    with CostOpsClient(base_url=f"sqlite:///{tmp_path}/costs.db") as client:
        (record,) = client.usage.list(organization_id="acme")
    assert record.quality == UsageQuality.UNKNOWN


def test_so_many_wait_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_cost_ops.instrumentation.fetched.MAX_WAITING", 2)
    sink, background = Kept(), Background()
    for number in range(5):
        call = Call(options(sink), "openai.responses", "openai", known_host=True, model=f"gpt-{number}")
        body = json.dumps({"id": f"resp_{number}", "status": "queued", "background": True}).encode()
        call.body = lambda body=body: body
        background.asked(call, finished=True)
    assert [record.model_id for record in sink.records] == [f"gpt-{n}" for n in range(3)]
    background.abandon()
    assert len(sink.records) == 5
    assert {record.quality for record in sink.records} == {UsageQuality.UNKNOWN}
    # Who fetches one of them elsewhere, later, records what it was billed for under its id.
    assert {record.idempotency_key for record in sink.records} == {""}


def line(number: int, *, status: int = 200, body: Any = None) -> dict[str, Any]:
    usage = {"prompt_tokens": number, "completion_tokens": 1, "total_tokens": number + 1}
    answer = {"id": f"chatcmpl-{number}", "object": "chat.completion", "model": "gpt-4o", "usage": usage}
    response = {"status_code": status, "body": body or answer}
    return {"id": f"batch_req_{number}", "custom_id": f"c{number}", "response": response}


def read(content: bytes, cuts: list[int], provider: str = "openai", place: str = "h/f") -> list[UsageRecord]:
    """What is recorded of a file that comes in pieces."""
    sink = Kept()
    begin = lambda: Call(options(sink, provider), "", provider, known_host=True)
    lines = ResultLines(begin, place)
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    pieces = [content[start:end] for start, end in pairwise(edges)]
    assert b"".join(map(lines.feed, pieces)) == content
    lines.rest()
    return sink.records


@given(
    st.lists(st.sampled_from(["good", "bad", "embedding", "blank"]), max_size=8),
    st.lists(st.integers(0, 3000)),
    st.booleans(),
)
def test_each_line_that_succeeded_is_a_call_however_the_bytes_come(
    kinds: list[str], cuts: list[int], ends: bool
) -> None:
    embedding = {"object": "list", "model": "e", "data": [], "usage": {"prompt_tokens": 5, "total_tokens": 5}}
    made = {
        "good": line,
        "bad": lambda n: line(n, status=400, body={"error": {"message": "no"}}),
        "embedding": lambda n: line(n, body=embedding),
        "blank": lambda n: None,
    }
    rows = [(kind, made[kind](number)) for number, kind in enumerate(kinds)]
    content = b"\n".join(b"" if row is None else json.dumps(row).encode() for _, row in rows)
    found = read(content + b"\n" * ends, cuts)
    keys = {"good": "openai:chatcmpl-{}", "embedding": "openai:batch_req_{}"}
    wanted = [keys[kind].format(number) for number, (kind, _) in enumerate(rows) if kind in keys]
    assert [record.idempotency_key for record in found] == wanted
    assert {record.processing for record in found} <= {"batch"}


@pytest.mark.parametrize("odd", ['"cut \\ud83d"', "NaN", '"\\ud83d", "logprobs": -Infinity'])
def test_a_line_that_only_a_tolerant_parser_takes_is_a_call(odd: str) -> None:
    rows = [json.dumps(line(number)) for number in range(3)]
    rows[1] = rows[1].replace('"object"', f'"text": {odd}, "object"', 1)
    keys = [record.idempotency_key for record in read("\n".join(rows).encode(), [])]
    assert keys == [f"openai:chatcmpl-{number}" for number in range(3)]


def test_a_line_that_can_not_be_read_does_not_end_the_others(caplog: pytest.LogCaptureFixture) -> None:
    rows = [json.dumps(line(number)) for number in range(4)]
    rows[1] = rows[1][:40]
    rows[2] = "not JSON"
    keys = [record.idempotency_key for record in read("\n".join(rows).encode(), [20, 300, 320])]
    assert keys == ["openai:chatcmpl-0", "openai:chatcmpl-3"]
    # Once for a file, however many lines there are.
    assert caplog.text.count("can't be read") == 1


def test_lines_without_unique_ids_have_a_key_of_their_file() -> None:
    content = b"\n".join(json.dumps(line(number)).encode() for number in range(3))
    own = [record.idempotency_key for record in read(content, [], "vllm")]
    assert len(set(own)) == 3
    assert own == [record.idempotency_key for record in read(content, [7], "vllm")]
    assert not set(own) & {record.idempotency_key for record in read(content, [], "vllm", "h/g")}


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
def test_other_files_pass_unread(content: bytes, cuts: list[int]) -> None:
    assert read(content, cuts) == []


def test_a_file_with_a_line_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_cost_ops.instrumentation.fetched.MAX_LINE", 1000)
    good = json.dumps(line(1)).encode()
    assert len(read(good + b"\n" + b"{" * 2000 + b"\n" + good, [500, 1500, 2100])) == 1


def test_a_file_longer_than_the_queue_is_recorded_whole_with_a_spool(tmp_path: Path) -> None:
    content = b"\n".join(json.dumps(line(number)).encode() for number in range(3000))
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=content))
    recorder = RecorderConfig(max_records=600, spool=str(tmp_path / "spool"))
    config = ClientConfig(base_url="sqlite://", organization_id="acme", recorder=recorder)
    with CostOpsClient(config=config) as client:
        with client.instrument(httpx.Client(transport=transport)) as sdk:
            sdk.get("https://api.openai.com/v1/files/f/content")
        report = client.flush(60)
        assert (report.delivered, report.dropped, report.pending) == (3000, 0, 0)


def test_what_the_recorder_drops_is_counted_line_by_line() -> None:
    content = b"\n".join(json.dumps(line(number)).encode() for number in range(1200))
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=content))
    client = CostOpsClient(config=ClientConfig(base_url="sqlite://", organization_id="acme"))
    client.close()
    with client.instrument(httpx.Client(transport=transport)) as sdk:
        sdk.get("https://api.openai.com/v1/files/f/content")
    assert client.flush(0).dropped == 1200
