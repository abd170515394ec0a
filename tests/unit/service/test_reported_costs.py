"""Whose stated costs are taken: a setting of the embedded engine, of the server and of imports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import ClientConfig, ConfigurationError, CostOpsClient
from llm_cost_ops.cli import main
from llm_cost_ops.server import asgi_app
from tests.conformance.clients import running_server

CALL: dict[str, Any] = {"model_id": "gpt-4o", "input_tokens": 1000, "output_tokens": 0, "reported_cost": "7"}


def _statuses(client: CostOpsClient) -> list[str]:
    calls = [{**CALL, "provider": name} for name in ("openai", "openrouter")]
    records = [client.usage.submit(organization_id="o", **call) for call in calls]
    return [str(record.cost_status.value) for record in records]


def test_gateways_are_believed_unless_told_otherwise(tmp_path: Path) -> None:
    path = f"sqlite:///{tmp_path}/costs.db"
    for config, wanted in (
        (ClientConfig(base_url=path), ["priced", "reported"]),
        (ClientConfig(base_url=path, reported_providers=["OpenAI"]), ["reported", "reported"]),
        (ClientConfig(base_url=f"{path}?reported_providers=openai"), ["reported", "reported"]),
    ):
        with CostOpsClient(config=config) as client:
            # openrouter has no card for a model of this name: what it states is the only answer.
            assert _statuses(client) == wanted
    with CostOpsClient(base_url=f"{path}?reported_providers=") as client:
        call = {**CALL, "model_id": "openai/gpt-4o", "provider": "openrouter"}
        assert client.costs.estimate(**call).status == "priced"
        assert client.costs.verify(
            client.usage.list(status="reported").data[0].id, organization_id="o"
        ).matches


def test_the_server_has_the_setting(tmp_path: Path) -> None:
    arguments = ("--http", "127.0.0.1:0", "--reported-providers", "openai")
    with (
        running_server(tmp_path, *arguments) as urls,
        CostOpsClient(base_url=urls["http"]) as client,
    ):
        assert _statuses(client) == ["reported", "reported"]


def test_an_import_has_the_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_text(json.dumps({"provider": "openai", **CALL}))
    command = ["import", str(path), "--reported-providers", "openai"]
    assert main([*command, "--db", str(tmp_path / "costs.db")]) == 0
    assert "7.00 USD" in capsys.readouterr().out
    assert main([*command, "--base-url", "http://127.0.0.1:1"]) == 2
    with pytest.raises(ConfigurationError, match="reported_providers"):
        ClientConfig(reported_providers="openrouter")
    with pytest.raises(ConfigurationError, match="reported_providers"):
        # Each of its letters would be taken for a provider, and no stated cost for one.
        asgi_app("sqlite://", reported_providers="openrouter")
