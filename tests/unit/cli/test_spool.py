"""`llm-cost-ops spool` counts what a dead process left, and sends it once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.cli import main


def _left_behind(folder: Path, count: int) -> None:
    code = f"""
        import os
        from llm_cost_ops import ClientConfig, CostOpsClient, RecorderConfig
        config = ClientConfig(base_url="http://127.0.0.1:9", recorder=RecorderConfig(spool={str(folder)!r}))
        client = CostOpsClient(config=config)
        for _ in range({count}):
            client.usage.record(organization_id="o", provider="openai", model_id="gpt-4o", input_tokens=1000)
        os._exit(0)
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_status_and_drain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, db = tmp_path / "spool", str(tmp_path / "costs.db")
    _left_behind(folder, 25)
    assert main(["spool", "status", str(folder)]) == 1
    assert "25 records in 1 segments" in capsys.readouterr().out
    assert main(["spool", "drain", str(folder), "--db", db]) == 0
    assert "25 delivered, 0 were there before" in capsys.readouterr().out
    assert main(["spool", "status", str(folder)]) == 0
    with CostOpsClient(base_url=f"sqlite:///{db}") as client:
        assert client.costs.get(organization_id="o").total_requests == 25


def test_a_server_that_is_down_leaves_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "spool"
    _left_behind(folder, 3)
    arguments = ["spool", "drain", str(folder), "--base-url", "http://127.0.0.1:9", "--timeout", "0.3"]
    assert main(arguments) == 1
    assert "0 delivered" in (out := capsys.readouterr().out)
    assert "3 left" in out
    assert main(["spool", "status", str(folder)]) == 1


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    missing = tmp_path / "missing"
    for folder in (file, missing):
        assert main(["spool", "status", str(folder)]) == 2
        assert f"there is no folder {folder}" in capsys.readouterr().err
        assert main(["spool", "drain", str(folder), "--db", str(tmp_path / "costs.db")]) == 2
        assert f"there is no folder {folder}" in capsys.readouterr().err
    assert not missing.exists()
