"""The public ASGI app: over a URL or a ledger, and mounted under a prefix of another app."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.ledger import Filter, open_ledger
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.server import asgi_app, serve
from llm_cost_ops.server.decoding import MAX_INLINE_RECEIPTS
from tests.tiny_service import PUT_NOTE

RECORD = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000}


class Mount:
    """What Starlette and FastAPI do for `app.mount(prefix, app)`: root_path grows, the path stays whole."""

    def __init__(self, prefix: str, app: Any) -> None:
        self.prefix = prefix
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"].startswith(self.prefix)
        await self.app({**scope, "root_path": scope.get("root_path", "") + self.prefix}, receive, send)


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_it_is_mounted_under_a_prefix(tmp_path: Path) -> None:
    app = asgi_app(str(tmp_path / "costs.db"), require_keys=False)
    async with client_of(Mount("/costs", app)) as client:
        assert (await client.post("/costs/api/v1/usage", json=RECORD)).status_code == 201
        answer = await client.get("/costs/api/v1/costs")
        assert answer.json()["data"]["total_cost"] == "0.0025"
    await app.aclose()
    await app.aclose()


async def test_keys_are_required_unless_it_is_said_otherwise() -> None:
    async with client_of(asgi_app("sqlite://")) as client:
        assert (await client.get("/api/v1/costs")).status_code == 401


async def test_a_ledger_that_was_given_stays_open() -> None:
    ledger = open_ledger("sqlite://")
    app = asgi_app(ledger, require_keys=False)
    async with client_of(app) as client:
        await client.post("/api/v1/usage", json=RECORD)
    await app.aclose()
    runtime = AsyncRuntime()
    context = CallContext(PUT_NOTE, runtime, Metadata(), runtime.monotonic() + 5)
    assert await ledger.sums.count(Filter(), context) == 1
    await ledger.aclose()


async def test_metrics_and_access_log_where_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = asgi_app("sqlite://", require_keys=False, metrics=True, access_log="json")
    async with client_of(Mount("/costs", app)) as client:
        assert (await client.post("/costs/api/v1/usage", json=RECORD)).status_code == 201
        assert (await client.get("/costs/metrics")).status_code == 401
        scraped = await client.get("/costs/metrics", headers={"host": "localhost"})
    await app.aclose()
    lines = scraped.text.splitlines()
    submit = 'transport="http",method="llm_cost_ops.v1.UsageService.SubmitUsage",status="201"'
    assert f"llm_cost_ops_calls_total{{{submit}}} 1" in lines
    assert 'llm_cost_ops_records_total{status="created"} 1' in lines
    assert 'llm_cost_ops_ledger_requests{status="priced"} 1' in lines
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(each["rpc_method"].rpartition(".")[2], each["status"]) for each in logged] == [
        ("SubmitUsage", "201"), ("pages", "401"), ("pages", "200"),
    ]  # fmt: skip


async def test_metrics_and_access_log_are_off_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with client_of(asgi_app("sqlite://", require_keys=False)) as client:
        assert (await client.get("/metrics", headers={"host": "localhost"})).status_code == 404
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigurationError, match="access_log must be off, text, json, not 'xml'"):
        asgi_app("sqlite://", access_log="xml")


async def test_the_access_log_alone_needs_no_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    app = asgi_app("sqlite://", require_keys=False, access_log="text")
    async with client_of(app) as client:
        await client.post("/api/v1/usage", json=RECORD)
    await app.aclose()
    assert "rpc_method=llm_cost_ops.v1.UsageService.SubmitUsage status=201" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"db": "sqlite:///x.db"}, "db must be the path of a file"),
        ({"db": "x.db", "http": "nowhere"}, "http must be HOST:PORT"),
        ({"db": "x.db", "grpc": "127.0.0.1:99999"}, "grpc must be HOST:PORT"),
        ({"db": "x.db", "http": "0.0.0.0:0"}, "without API keys"),
        ({"db": "missing/x.db", "http": "127.0.0.1:0"}, "missing/x.db"),
    ],
)
def test_what_cannot_be_served_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    announced: list[str] = []
    with pytest.raises(ConfigurationError, match=message):
        serve(options.pop("db"), announce=announced.append, **options)
    assert announced == []
    assert not (tmp_path / "x.db").exists()


class Offloading(AsyncRuntime):
    """Counts the answers that are encoded in another thread."""

    encoded = 0

    async def offload(self, function: Any, *args: object) -> Any:
        self.encoded += function.__name__ == "encode_response"
        return await super().offload(function, *args)


async def test_only_an_answer_that_takes_long_is_encoded_in_another_thread() -> None:
    app, runtime = asgi_app("sqlite://", require_keys=False), Offloading()
    app._runtime = runtime
    async with client_of(app) as client:

        async def counted(records: list[dict[str, Any]]) -> int:
            before = runtime.encoded
            answer = await client.post("/api/v1/usage/batch", json={"records": records})
            assert len(answer.json()["data"]["results"]) == len(records)
            return runtime.encoded - before

        assert await counted([RECORD] * MAX_INLINE_RECEIPTS) == 0
        assert await counted([RECORD] * (MAX_INLINE_RECEIPTS + 1)) == 1
        # What is wrong with a record may take a hundred times as long as a receipt.
        assert await counted([RECORD, {**RECORD, "input_tokens": -1}]) == 1
    await app.aclose()
