"""A real key, used through clients, both listeners of a server and the command line: it is shown nowhere."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsError, LoggingConfig, RetryConfig
from llm_cost_ops.cli import main
from llm_cost_ops.interceptors.metrics import CallMetrics, PrometheusExporter
from llm_cost_ops.ledger.sqlite import SqliteLedger
from llm_cost_ops.server.admission import Admission
from llm_cost_ops.server.app import HttpServer
from llm_cost_ops.server.grpc import GrpcServer
from llm_cost_ops.server.http import AsgiApp
from llm_cost_ops.service import Service
from llm_cost_ops.service.access.authentication import Authentication
from llm_cost_ops.service.access.tenancy import OPEN
from tests.conformance.keyed import make_key, revoke

CALL: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000}


class Breaking:
    """A server interceptor that fails where a project says so, as a mistake in the code would."""

    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        if getattr(request, "project_id", None) == ["break"]:
            raise RuntimeError(f"broken: {context!r} {context.principal!r}")
        return await continuation(request, context)


class Doors:
    """Both listeners over one database, in this process, where all that they log is seen."""

    def __init__(self, database: Path) -> None:
        store = SqliteLedger(str(database), group_commit=True)
        admission = Admission(1, exempt=OPEN)
        self.admission = admission
        self.service = Service(store, [admission, Authentication(store.keys, required=True), Breaking()])
        self._servers = [
            HttpServer(AsgiApp(self.service.handler), port=0),
            GrpcServer(self.service.handler, port=0),
        ]
        self.urls: list[str] = []

    async def start(self) -> None:
        self.urls = [await server.start() for server in self._servers]

    async def stop(self) -> None:
        for server in self._servers:
            await server.stop(1)
        await self.service.aclose()


@pytest.fixture
async def listeners(tmp_path: Path) -> AsyncIterator[Doors]:
    made = Doors(tmp_path / "server.db")
    await made.start()
    yield made
    await made.stop()


def everything_about(error: BaseException) -> str:
    shown = "".join(traceback.format_exception(error)) + pickle.dumps(error).decode("latin-1")
    seen: BaseException | None = error
    while seen is not None:
        shown += f"{seen!r} {seen} {vars(seen)}"
        seen = seen.__cause__ or seen.__context__
    return shown


def held_in(folder: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in folder.iterdir())


async def use(client: Any, listeners: Doors) -> str:
    """Calls of every outcome; all that they show."""
    shown = repr(client) + repr(client.config)
    receipt = await client.with_raw_response.usage.submit(organization_id="acme", **CALL)
    shown += f"{receipt!r} {receipt.headers!r} {receipt.parsed!r}"
    shown += repr(await client.usage.get_history())
    listeners.admission.in_flight = 1
    with pytest.raises(CostOpsError, match="in flight") as overloaded:
        await client.costs.get()
    listeners.admission.in_flight = 0
    shown += everything_about(overloaded.value)
    for failing in (
        client.usage.submit(organization_id="globex", **CALL),
        client.usage.submit(organization_id="acme", **{**CALL, "model_id": ""}),
        client.usage.get_history(cursor="x"),
        client.pricing.get("nothing"),
        client.pricing.create(organization_id="acme", provider="p", model_id="m", input_price_per_1k=1),
        client.costs.get(project_id="break"),
        client.costs.get(timeout=0),
    ):
        with pytest.raises(CostOpsError) as caught:
            await failing
        shown += everything_about(caught.value)
    return shown


async def test_a_key_is_shown_nowhere(
    listeners: Doors, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    database = tmp_path / "server.db"
    key = make_key(database, ["acme"])
    shown = ""
    for url in listeners.urls:
        registry = CollectorRegistry()
        config = ClientConfig(
            api_key=key,
            base_url=url,
            logging=LoggingConfig(enabled=True, level="DEBUG"),
            retry=RetryConfig(max_retries=0),
        )
        metrics = CallMetrics([PrometheusExporter("tests", registry)])
        async with AsyncCostOpsClient(config=config, interceptors=[metrics]) as client:
            shown += await use(client, listeners) + generate_latest(registry).decode()
    revoke(database, key)
    for url in listeners.urls:
        async with AsyncCostOpsClient(api_key=key, base_url=url) as client:
            with pytest.raises(CostOpsError) as caught:
                await client.costs.get()
            shown += everything_about(caught.value)
    assert main(["keys", "list", "--db", str(database)]) == 0
    assert main(["keys", "revoke", key, "--db", str(database)]) == 0
    shown += "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    shown += caplog.text + "".join(capfd.readouterr())
    shown += held_in(tmp_path)
    assert key[4:12] in shown, "its id is seen"
    assert "broken: " in shown, "the server logged its own mistake"
    secret = key[13:]
    places = [shown[max(0, at - 200) : at + 20] for at in range(len(shown)) if shown.startswith(secret, at)]
    assert places == []
