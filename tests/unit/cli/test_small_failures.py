"""Failures that everybody meets: they say what is wrong and what to do, and do not take long."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import httpx
import pytest

from llm_cost_ops import ClientConfig, ConfigurationError, CostOpsClient
from llm_cost_ops.cli import main
from tests.served import served


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    "command",
    [
        "serve --db", "proxy --db", "costs --db", "costs --base-url", "dashboard --db", "quickstart --db",
        "keys create --organization acme --db", "keys list --db", "db check",
        "db copy costs.db", "import x --db",
    ],
)  # fmt: skip
def test_a_database_without_a_name_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As from --db "$UNSET": SQLite opens a private file then, which nobody finds again.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), ""])
    assert caught.value.code == 2
    assert "must not be empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("command", [["costs"], ["estimate", "openai", "gpt-4o", "--input", "1"]])
def test_a_server_that_is_not_there_is_told_at_once(closed_port, capsys, monkeypatch, scheme, command):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    url = f"{scheme}://127.0.0.1:{closed_port}"
    started = time.monotonic()
    assert main([*command, "--base-url", url]) == 2
    # A call that was tried again until its deadline takes half a minute.
    assert time.monotonic() - started < 20
    told = capsys.readouterr().err
    assert f"nothing listens at {url}" in told
    assert "llm-cost-ops serve" in told


@pytest.mark.parametrize("kind", ["--http", "--grpc"])
def test_a_busy_port_is_named(tmp_path, capsys, kind):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["serve", "--db", str(tmp_path / "costs.db"), kind, address]) == 2
    captured = capsys.readouterr()
    assert f"llm-cost-ops: {address}: can't listen there: Address already in use" in captured.err
    assert "GRPC_VERBOSITY" not in captured.err


def test_a_socket_that_can_not_be_is_named(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("", encoding="ascii")
    assert main(["serve", "--db", str(tmp_path / "costs.db"), "--http", f"unix:{path}"]) == 2
    assert f"llm-cost-ops: {path}: can't listen there" in capsys.readouterr().err


def test_a_socks_proxy_without_its_library_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "socksio", None)
    config = ClientConfig(base_url="http://costs.example", proxy="socks5://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"pip install 'httpx\[socks\]'") as raised:
        CostOpsClient(config=config)
    assert raised.value.parameter == "proxy"


def test_health_tells_the_time_since_the_start(tmp_path):
    with served("--db", str(tmp_path / "costs.db"), "--http", "127.0.0.1:0") as server:
        time.sleep(0.3)
        first = httpx.get(f"{server.urls[0]}/health").json()["uptime_seconds"]
    assert 0.3 <= first < 600


@pytest.mark.parametrize(("command", "listed"), [("", "estimate"), ("prices", "update"), ("db", "backup")])
def test_a_command_without_its_action_is_answered_with_those_that_there_are(command, listed, capsys):
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"\n    {listed}  " in shown.err


@pytest.mark.parametrize(
    ("command", "what"),
    [("costs", "Show what usage cost."), ("keys", "Make, list"), ("usage revisions", "Every revision")],
)
def test_the_help_of_a_command_says_what_it_does(command, what, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert f"\n\n{what}" in capsys.readouterr().out


def test_who_needs_a_key_is_told_where_a_command_takes_it_from(tmp_path, monkeypatch, capsys):
    db = str(tmp_path / "costs.db")
    assert main(["keys", "create", "--organization", "acme", "--db", db]) == 0
    key = capsys.readouterr().out.strip()
    with served("--db", db, "--http", "127.0.0.1:0") as server:
        url = server.urls[0]
        monkeypatch.delenv("LLM_COST_OPS_API_KEY", raising=False)
        assert main(["costs", "--base-url", url]) == 2
        assert "Set LLM_COST_OPS_API_KEY" in capsys.readouterr().err
        monkeypatch.setenv("LLM_COST_OPS_API_KEY", key)
        assert main(["costs", "--base-url", url]) == 0
