"""The dashboard from the command line."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.cli import main
from tests.waiting import MAX_WAIT


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[str]:
    """The address that a command serves at."""
    command = [sys.executable, "-u", "-m", "llm_cost_ops.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = iter(process.stdout)
            yield next(found[1] for line in lines if (found := re.search(r"listening on (\S+),", line)))
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(MAX_WAIT) == 0


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = str(tmp_path / "costs.db")
    with CostOpsClient(base_url=f"sqlite:///{path}") as client:
        client.usage.submit(organization_id="acme", provider="openai", model_id="gpt-4o", input_tokens=1000)
    return path


def test_a_file_is_looked_at(database: str) -> None:
    with running("dashboard", "--db", database, "--no-browser") as address:
        assert address.startswith("http://127.0.0.1:")
        page = httpx.get(f"{address}/")
        assert page.status_code == 200
        assert '<data value="0.0025"' in page.text


def test_a_server_has_it_unless_it_is_left_out(database: str) -> None:
    for options, status in (([], 200), (["--no-dashboard"], 404)):
        with running("serve", "--db", database, "--http", "127.0.0.1:0", *options) as address:
            assert httpx.get(f"{address}/").status_code == status
            assert httpx.get(f"{address}/api/v1/costs").status_code == 200


def test_the_browser_is_opened(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_cost_ops.cli import serving

    opened: list[str] = []

    def run(_: str, *, http: str, announce) -> None:
        assert http == "127.0.0.1:0"
        announce("NO API KEYS: whoever can connect")
        announce(f"listening on http://127.0.0.1:12345, {database}")

    monkeypatch.setattr(serving, "run", run)
    monkeypatch.setattr(serving.webbrowser, "open", opened.append)
    # As it is opened beside the server, that has to be waited for.
    monkeypatch.setattr(serving.threading.Thread, "start", serving.threading.Thread.run)
    assert main(["dashboard", "--db", database]) == 0
    assert main(["dashboard", "--db", database, "--no-browser"]) == 0
    assert opened == ["http://127.0.0.1:12345/"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--db", "none.db"], "there is no database none.db"), (["--port", "70000"], "port must be 0 to 65535")],
)
def test_what_cannot_be_shown(
    arguments: list[str],
    message: str,
    database: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["dashboard", "--db", database, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("none.db").exists()
