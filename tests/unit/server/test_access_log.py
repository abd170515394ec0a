"""The access log: a line for each call, over both listeners, and nothing in it that a caller sent."""

from __future__ import annotations

import io
import json
import re

import httpx
import pytest

from llm_cost_ops import ClientConfig, CostOpsClient, RetryConfig
from llm_cost_ops.cli import main
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.server.access_log import AccessLog
from llm_cost_ops.server.calls import ServedCall
from llm_cost_ops.server.running import serve
from tests.served import served

NAMES = (
    "time", "transport", "rpc_method", "status", "duration_ms", "bytes_received", "bytes_sent", "key_id",
    "request_id",
)  # fmt: skip
CALL = ServedCall("http", "a.B.C", "201", 0.0012346, "r-1", "k3m2a7qx", 10, 20)
CANARY = "canary-5f3a"


def test_a_line_of_text():
    out = io.StringIO()
    AccessLog("text", out)(CALL)
    time, _, rest = out.getvalue().partition(" ")
    assert re.fullmatch(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert rest == (
        "transport=http rpc_method=a.B.C status=201 duration_ms=1.235 bytes_received=10 bytes_sent=20 "
        "key_id=k3m2a7qx request_id=r-1\n"
    )


def test_a_line_of_json_has_the_same():
    out = io.StringIO()
    AccessLog("json", out)(CALL._replace(key_id=""))
    facts = json.loads(out.getvalue())
    assert tuple(facts) == NAMES
    assert facts["duration_ms"] == 1.235
    assert facts["key_id"] == "-"


def test_a_request_id_that_is_a_key_keeps_its_public_part():
    out = io.StringIO()
    AccessLog("text", out)(CALL._replace(request_id="lco_k3m2a7qx_" + "a" * 52))
    assert out.getvalue().endswith("request_id=lco_k3m2a7qx\n")


def test_a_stream_that_is_gone_harms_no_call():
    out = io.StringIO()
    log = AccessLog("text", out)
    out.close()
    log(CALL)


def test_other_forms_are_refused():
    with pytest.raises(ConfigurationError, match="access_log must be off, text, json, not 'xml'"):
        serve("costs.db", access_log="xml")


def lines_of(server):
    return [json.loads(line) for line in server.printed if line.startswith("{")]


def test_calls_are_logged_and_what_was_sent_is_not(tmp_path, capsys):
    database = str(tmp_path / "costs.db")
    assert main(["keys", "create", "--organization", "acme", "--db", database]) == 0
    key = capsys.readouterr().out.strip()
    listeners = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--access-log", "json")
    with served("--db", database, *listeners, listeners=2) as server:
        for url in server.urls:
            config = ClientConfig(base_url=url, api_key=key, retry=RetryConfig(max_retries=0))
            with CostOpsClient(config=config) as client:
                client.usage.submit(
                    organization_id="acme",
                    provider=CANARY,
                    model_id=CANARY,
                    input_tokens=1,
                    labels={"a": CANARY},
                    metadata={"x-note": CANARY},
                )
                client.usage.get_history(provider=CANARY)
            with (
                CostOpsClient(config=config.with_api_key(f"{key[:-4]}aaaa")) as client,
                pytest.raises(Exception, match="API key"),
            ):
                client.costs.get()
        http = server.urls[0]
        httpx.get(f"{http}/{CANARY}/{key}?a={CANARY}", headers={"x-canary": CANARY, "x-request-id": key})
        httpx.post(f"{http}/api/v1/usage", content=CANARY, headers={"authorization": f"Bearer {key}"})
        httpx.get(f"{http}/docs")
        server.wait_for(r'"rpc_method":"pages"')
        server.end()
        logged = lines_of(server)
        text = server.text
    calls = [
        (each["transport"], each["rpc_method"].rpartition(".")[2], each["status"], each["key_id"])
        for each in logged
    ]
    mine = key[4:12]
    assert ("http", "SubmitUsage", "201", mine) in calls
    assert ("grpc", "SubmitUsage", "OK", mine) in calls
    assert ("http", "ListUsage", "200", mine) in calls
    assert ("grpc", "ListUsage", "OK", mine) in calls
    assert ("http", "GetCostSummary", "401", "-") in calls
    assert ("grpc", "GetCostSummary", "UNAUTHENTICATED", "-") in calls
    assert ("http", "other", "404", "-") in calls
    assert ("http", "SubmitUsage", "400", mine) in calls
    assert ("http", "pages", "200", "-") in calls
    assert len(logged) == 9
    submitted = [each for each in logged if each["rpc_method"].endswith("SubmitUsage")]
    assert all(each["duration_ms"] > 0 and each["bytes_received"] > 0 for each in submitted)
    assert all(each["bytes_sent"] > 0 for each in logged if each["status"] in ("201", "OK"))
    assert CANARY not in text
    assert key[13:] not in text


def test_it_is_off_unless_asked_for(tmp_path):
    with served("--db", str(tmp_path / "costs.db"), "--http", "127.0.0.1:0") as server:
        httpx.get(f"{server.urls[0]}/health")
        server.end()
        assert "rpc_method" not in server.text
