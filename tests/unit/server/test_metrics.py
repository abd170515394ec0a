"""What /metrics says, read by Prometheus's own parser, against calls that were made and counted here."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llm_cost_ops import ClientConfig, CostOpsClient, RetryConfig, UsageRecord
from llm_cost_ops.cli import main
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.server.admission import Admission
from llm_cost_ops.server.calls import ServedCall
from llm_cost_ops.server.metrics import BUCKETS, FAMILIES, Metrics
from llm_cost_ops.server.metrics_page import MetricsPage
from llm_cost_ops.service.access.authentication import Authentication
from llm_cost_ops.service.access.tenancy import RULES, Principal, Role, check_role
from tests.served import served
from tests.tiny_service import context as call_context

DOCS = Path(__file__).parents[3] / "docs" / "operating.md"
USAGE = "llm_cost_ops.v1.UsageService"
CALL = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 10}


def samples_of(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples, name, **labels):
    return samples.get((name, *sorted(labels.items())))


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """The metrics of a server after calls over HTTP and gRPC."""
    database = tmp_path_factory.mktemp("metrics") / "costs.db"
    arguments = ("--db", str(database), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with served(*arguments, listeners=2) as server:
        http, grpc = server.urls
        for url in (http, grpc):
            config = ClientConfig(base_url=url, retry=RetryConfig(max_retries=0))
            with CostOpsClient(config=config) as client:
                for key in ("a", "a", "b"):
                    client.usage.submit(idempotency_key=f"{url}{key}", **CALL)
                with pytest.raises(Exception, match="other content"):
                    client.usage.submit(idempotency_key=f"{url}a", **{**CALL, "input_tokens": 11})
                client.usage.submit_batch(
                    [UsageRecord(**CALL), UsageRecord(**{**CALL, "model_id": "of-nobody"})]
                )
                client.usage.stream([UsageRecord(idempotency_key=f"{url}{key}", **CALL) for key in "ac"])
                client.costs.get()
        httpx.get(f"{http}/api/v1/lco_canary_in_a_path")
        httpx.get(f"{http}/docs")
        text = httpx.get(f"{http}/metrics").text
        yield samples_of(text), text, database


def test_calls_are_counted_by_transport_method_and_status(figures):
    samples, *_ = figures
    for transport, created, conflict, read in (
        ("http", "201", "409", "200"),
        ("grpc", "OK", "ALREADY_EXISTS", "OK"),
    ):
        calls = {
            (dict(labels)["method"].rpartition(".")[2], dict(labels)["status"]): count
            for (name, *labels), count in samples.items()
            if name == "llm_cost_ops_calls_total" and dict(labels)["transport"] == transport
        }
        assert sum(n for (method, _), n in calls.items() if method == "SubmitUsage") == 4
        assert calls["SubmitUsage", conflict] == 1
        assert calls["GetCostSummary", read] == 1
        assert ("SubmitUsage", created) in calls
    assert value(samples, "llm_cost_ops_calls_total", transport="http", method="other", status="404") == 1
    assert value(samples, "llm_cost_ops_calls_total", transport="http", method="pages", status="200") == 1


def test_records_and_the_ledger_are_counted(figures):
    samples, *_, database = figures
    counts = {
        status: value(samples, "llm_cost_ops_records_total", status=status)
        for status in ("created", "duplicate", "conflict", "invalid")
    }
    assert counts == {"created": 10, "duplicate": 4, "conflict": 2, "invalid": 0}
    requests = {
        dict(labels)["status"]: count
        for (name, *labels), count in samples.items()
        if name == "llm_cost_ops_ledger_requests"
    }
    assert requests["unpriced"] == 2
    assert sum(requests.values()) == 10
    assert value(samples, "llm_cost_ops_unpriced_share") == 0.2
    assert value(samples, "llm_cost_ops_ledger_up") == 1
    assert value(samples, "llm_cost_ops_commits_total") >= 4
    size = value(samples, "llm_cost_ops_database_bytes")
    assert 0 < size <= sum(path.stat().st_size for path in database.parent.iterdir()) * 2
    assert size % 4096 == 0


def test_no_label_comes_from_a_caller(figures):
    _, text, _ = figures
    assert "canary" not in text
    assert "acme" not in text


def test_every_family_is_written_as_it_is_declared(figures):
    _, text, _ = figures
    found = {family.name: family for family in text_string_to_metric_families(text)}
    for family in FAMILIES:
        written = found[family.name.removesuffix("_total") if family.kind == "counter" else family.name]
        assert written.type == family.kind
        assert written.documentation == family.help
        for sample in written.samples:
            assert set(sample.labels) - {"le"} == set(family.labels)
    assert len(found) == len(FAMILIES)


def test_the_docs_have_the_table_of_the_code():
    rows = []
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    assert re.findall(r"(?m)^\| `(?:llm_cost_ops|process)_.*$", DOCS.read_text(encoding="utf-8")) == rows


async def test_a_histogram_is_cumulative(tmp_path):
    metrics = await make(tmp_path)
    seconds = [0.0, 0.001, 0.0011, 0.3, 9.9, 11.0]
    for taken in seconds:
        metrics.observe(ServedCall("http", "m", "200", taken, "", "", 1, 2))
    samples = samples_of((await metrics.text()).decode())
    for bound in BUCKETS:
        counted = value(
            samples, "llm_cost_ops_call_seconds_bucket", transport="http", method="m", le=str(bound)
        )
        assert counted == sum(taken <= bound for taken in seconds)
    assert value(samples, "llm_cost_ops_call_seconds_count", transport="http", method="m") == len(seconds)
    total = value(samples, "llm_cost_ops_call_seconds_sum", transport="http", method="m")
    assert total == pytest.approx(sum(seconds))
    assert value(samples, "llm_cost_ops_received_bytes_total", transport="http") == len(seconds)


async def test_a_ledger_that_does_not_answer_says_so_and_the_rest_stays(tmp_path):
    metrics = await make(tmp_path)

    async def fails(_):
        raise RpcError(StatusCode.UNAVAILABLE, "busy")

    metrics._ledger.figures = fails
    metrics.observe(ServedCall("http", "m", "401", 0.1, "", "", 1, 2))
    samples = samples_of((await metrics.text()).decode())
    assert value(samples, "llm_cost_ops_ledger_up") == 0
    assert value(samples, "llm_cost_ops_database_bytes") is None
    assert value(samples, "llm_cost_ops_refusals_total", reason="unauthenticated") == 1


_opened = []


@pytest.fixture(autouse=True)
async def closed():
    """Whatever a test opened is closed after it."""
    yield
    while _opened:
        await _opened.pop().aclose()


async def make(tmp_path):
    _opened.append(SqliteLedger(str(tmp_path / "costs.db")))
    return Metrics(_opened[-1], Admission(4), AsyncRuntime())


def key_for(database, capsys, *arguments):
    assert main(["keys", "create", "--db", str(database), *arguments]) == 0
    return capsys.readouterr().out.strip()


async def ask(page, *, client=("127.0.0.1", 1), headers=(), verb="GET"):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": verb,
        "path": "/metrics",
        "client": client,
        "headers": [(name.encode(), text.encode()) for name, text in headers],
    }
    assert page.serves(scope)
    await page(scope, None, send)
    return sent[0]["status"], sent[1]["body"]


LOCAL = ("host", "127.0.0.1:8080")


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        (("127.0.0.1", 1), [LOCAL], 200),
        (("::1", 1), [("host", "[::1]:8080")], 200),
        (("127.0.0.1", 1), [("host", "localhost:1")], 200),
        (None, [("host", "anything")], 200),
        (("10.0.0.7", 1), [LOCAL], 401),
        (("127.0.0.1", 1), [("host", "costs.example.com")], 401),
        (("127.0.0.1", 1), [LOCAL, ("x-forwarded-for", "10.0.0.7")], 401),
        (("127.0.0.1", 1), [LOCAL, ("forwarded", "for=10.0.0.7")], 401),
        (None, [("x-real-ip", "10.0.0.7")], 401),
        (("127.0.0.1", 1), [], 401),
        (("127.0.0.1", 1), [("host", "[")], 401),
    ],
)
async def test_only_loopback_needs_no_key(tmp_path, client, headers, status):
    metrics = await make(tmp_path)
    page = MetricsPage(metrics, Authentication(metrics._ledger.keys, required=True))
    found, body = await ask(page, client=client, headers=headers)
    assert found == status
    assert (b"llm_cost_ops_calls_in_flight" in body) is (status == 200)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--role", "metrics"], 200),
        (["--role", "admin", "--organization", "*"], 200),
        (["--role", "admin", "--organization", "acme"], 403),
        (["--role", "writer", "--organization", "*"], 403),
        (["--role", "reader", "--organization", "*"], 403),
    ],
)
async def test_others_need_a_key_that_may(tmp_path, capsys, arguments, status):
    import threading

    made = []
    thread = threading.Thread(target=lambda: made.append(key_for(tmp_path / "costs.db", capsys, *arguments)))
    thread.start()
    thread.join()
    metrics = await make(tmp_path)
    page = MetricsPage(metrics, Authentication(metrics._ledger.keys, required=True))
    found, body = await ask(page, client=("10.0.0.7", 1), headers=[("authorization", f"Bearer {made[0]}")])
    assert found == status
    assert made[0].encode() not in body


async def test_metrics_are_only_read(tmp_path):
    metrics = await make(tmp_path)
    page = MetricsPage(metrics, Authentication(metrics._ledger.keys, required=False))
    assert (await ask(page, verb="POST", headers=[LOCAL]))[0] == 405
    assert await ask(page, verb="HEAD", headers=[LOCAL]) == (200, b"")


@pytest.mark.parametrize("path", sorted(RULES))
def test_a_metrics_key_may_call_no_method(path):
    principal = Principal(key_id="k", role=Role.METRICS, organizations=None)
    context = call_context(next(method for method in methods() if method.path == path))
    context.principal = principal
    with pytest.raises(RpcError) as raised:
        check_role(context)
    assert raised.value.code is StatusCode.PERMISSION_DENIED


def methods():
    from llm_cost_ops._gen import methods as generated
    from llm_cost_ops.rpc.method import MethodDescriptor

    return [item for item in vars(generated).values() if isinstance(item, MethodDescriptor)]


def test_a_metrics_key_is_of_the_server(tmp_path, capsys):
    arguments = ["keys", "create", "--db", str(tmp_path / "costs.db"), "--role", "metrics"]
    assert main([*arguments, "--organization", "acme"]) == 2
    assert "organization must be '*'" in capsys.readouterr().err
