"""`llm-cost-ops proxy` as a process: it drains, and goes on while its ledger is away."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.cli import main
from llm_cost_ops.types import UsageQuality, UsageRecord
from tests.ports import free_port
from tests.proxies import ANSWER, CHAT, CHUNK, PATH, Provider, event
from tests.tunnels import self_signed
from tests.waiting import MAX_WAIT, until

OPENAI = ["--upstream", "openai=https://x.example"]


class Process:
    def __init__(self, folder: Path, provider: Provider, *options: str) -> None:
        command = [sys.executable, "-m", "llm_cost_ops.cli", "proxy", "--http", "127.0.0.1:0"]
        command += ["--upstream", f"openai={provider.url}", "--organization", "acme", *options]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.announced = [self.process.stdout.readline(), self.process.stdout.readline()]
        self.url = self.announced[-1].split()[-1]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=MAX_WAIT)
        return self.process.returncode, errors


@contextmanager
def running(folder: Path, provider: Provider, *options: str) -> Iterator[Process]:
    made = Process(folder, provider, *options)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.process.communicate()


def records(folder: Path) -> list[UsageRecord]:
    with CostOpsClient(base_url=f"sqlite:///{folder}/llm_cost_ops.db") as client:
        return list(client.usage.list())


def numbered(provider: Provider) -> None:
    numbers = iter(range(1000))

    def answer(handler: Any) -> None:
        handler.whole(json.dumps({**ANSWER, "id": f"chatcmpl-{next(numbers)}"}).encode())

    provider.answer = answer


def listens(url: str) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", httpx.URL(url).port)) == 0


def test_what_it_says_and_where_it_keeps_things(tmp_path: Path, provider: Provider) -> None:
    with running(tmp_path, provider) as proxy:
        assert "NO API KEYS NEEDED" in proxy.announced[0]
        assert httpx.post(proxy.url + PATH, json=CHAT).status_code == 200
        status, errors = proxy.end()
    assert (status, errors) == (0, "")
    assert [record.total_tokens for record in records(tmp_path)] == [1007]


def test_a_call_in_flight_is_answered_and_recorded_before_the_end(tmp_path: Path, provider: Provider) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def answer(handler: Any) -> None:
        handler.stream()
        handler.part(event(CHUNK))
        begun.set()
        go_on.wait(MAX_WAIT)
        handler.part(event({**CHUNK, "choices": [], "usage": ANSWER["usage"]}) + event(b"[DONE]"))
        handler.part(b"")

    provider.answer = answer
    with running(tmp_path, provider) as proxy:
        answers: list[bytes] = []
        call = threading.Thread(
            target=lambda: answers.append(
                httpx.post(proxy.url + PATH, json={**CHAT, "stream": True}, timeout=MAX_WAIT).content
            )
        )
        call.start()
        assert begun.wait(MAX_WAIT)
        proxy.process.send_signal(signal.SIGTERM)
        until(lambda: not listens(proxy.url))
        go_on.set()
        call.join(MAX_WAIT)
        proxy.process.communicate(timeout=MAX_WAIT)
        assert proxy.process.returncode == 0
    assert answers == [event(CHUNK) + event(b"[DONE]")]
    assert [record.total_tokens for record in records(tmp_path)] == [1007]


def test_calls_go_on_while_the_ledger_is_away_and_count_once_later(
    tmp_path: Path, provider: Provider
) -> None:
    numbered(provider)
    port = free_port()
    with running(tmp_path, provider, "--base-url", f"http://127.0.0.1:{port}") as proxy:
        began = time.monotonic()
        with httpx.Client() as caller:
            for _ in range(20):
                assert caller.post(proxy.url + PATH, json=CHAT).status_code == 200
        assert time.monotonic() - began < 2 * MAX_WAIT, "each waited for the ledger"
        status, _ = proxy.end()
    assert status == 0
    assert not (tmp_path / "llm_cost_ops.db").exists()
    command = [sys.executable, "-m", "llm_cost_ops.cli", "spool", "drain", "llm_cost_ops.spool"]
    drained = subprocess.run(
        [*command, "--db", "llm_cost_ops.db"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert drained.stdout.startswith("20 delivered"), drained.stdout
    assert len(records(tmp_path)) == 20


def test_what_was_answered_survives_a_kill(tmp_path: Path, provider: Provider) -> None:
    """Whoever got a whole answer is recorded, in the ledger or in the spool."""
    numbered(provider)
    with running(tmp_path, provider) as proxy:
        with httpx.Client() as caller:
            for _ in range(20):
                assert caller.post(proxy.url + PATH, json=CHAT).status_code == 200
        proxy.process.kill()
        proxy.process.communicate()
    command = [sys.executable, "-m", "llm_cost_ops.cli", "spool", "drain", "llm_cost_ops.spool"]
    subprocess.run(
        [*command, "--db", "llm_cost_ops.db"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert len(records(tmp_path)) == 20


def test_a_stream_is_cut_where_the_grace_ends_and_is_of_unknown_usage(
    tmp_path: Path, provider: Provider
) -> None:
    """A second signal ends the grace."""
    begun = threading.Event()

    def answer(handler: Any) -> None:
        handler.stream()
        handler.part(event(CHUNK))
        begun.set()
        handler.wait_until_closed()

    provider.answer = answer
    with running(tmp_path, provider) as proxy:
        failed: list[Exception] = []

        def call() -> None:
            try:
                httpx.post(proxy.url + PATH, json={**CHAT, "stream": True}, timeout=MAX_WAIT)
            except httpx.HTTPError as error:
                failed.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        assert begun.wait(MAX_WAIT)
        proxy.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert proxy.process.poll() is None
        status, _ = proxy.end()
        caller.join(MAX_WAIT)
    assert status == 0
    assert len(failed) == 1
    assert [record.quality for record in records(tmp_path)] == [UsageQuality.UNKNOWN]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "upstream must be given, such as openai=https://api.openai.com"),
        (["--upstream", "openai"], "--upstream must be NAME=URL"),
        (["--upstream", "openai=https://x.example", "--config", "none.toml"], "none.toml: No such file"),
        (["--upstream", "openai=https://x.example", "--spool", "/dev/null"], "spool /dev/null: "),
        (["--upstream", "openai=ftp://x"], "upstream openai: the URL must begin with"),
        (
            ["--upstream", "openai=https://x.example", "--http", "0.0.0.0:0", "--base-url", "http://h"],
            "keys must be",
        ),
        (["--upstream", "openai=https://x.example", "--tls-cert", "none.pem"], "TLS needs --tls-key"),
        (["--upstream", "openai=https://x.example", "--db", "/nowhere/x.db"], "nowhere"),
    ],
)
def test_what_can_not_be_run_is_said(tmp_path: Path, options: list[str], says: str) -> None:
    command = [sys.executable, "-m", "llm_cost_ops.cli", "proxy", *options]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=2 * MAX_WAIT, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("llm-cost-ops: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "listening" not in done.stdout


def test_check_takes_the_settings_of_a_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("proxy.toml").write_text(
        'db = "costs.db"\n[upstream]\nopenai = "https://x.example"\n', encoding="utf-8"
    )
    monkeypatch.setenv("LLM_COST_OPS_PROXY_CONFIG", "proxy.toml")
    assert main(["proxy", "--check"]) == 0
    assert capsys.readouterr().out.endswith("the settings are good\n")
    assert Path("costs.db").is_file()
    monkeypatch.setenv("LLM_COST_OPS_PROXY_SPOOL", "proxy.toml")
    assert main(["proxy", "--check"]) == 2
    assert "spool proxy.toml: " in capsys.readouterr().err


def test_it_records_into_the_service_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever set it finds no record there, and a database beside the proxy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_COST_OPS_BASE_URL", "http://127.0.0.1:9")
    assert main(["proxy", *OPENAI, "--check"]) == 0
    assert not Path("llm_cost_ops.db").exists()


def test_what_a_killed_proxy_left_is_sent_without_a_call(tmp_path: Path, provider: Provider) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    (tmp_path / "proxy.toml").write_text(f'base_url = "{away}"\n', encoding="utf-8")
    with running(tmp_path, provider, "--config", "proxy.toml") as proxy:
        assert httpx.post(proxy.url + PATH, json=CHAT).status_code == 200
        proxy.process.kill()
        proxy.process.communicate()
    assert not (tmp_path / "llm_cost_ops.db").exists()
    with running(tmp_path, provider, "--config", "proxy.toml", "--db", "llm_cost_ops.db") as proxy:
        until = time.monotonic() + 60
        while not records(tmp_path):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert proxy.end() == (0, "")
    assert [record.total_tokens for record in records(tmp_path)] == [1007]


def test_a_proxy_reads_a_renewed_certificate(tmp_path: Path, provider: Provider) -> None:
    cert, key = self_signed(tmp_path)
    with running(tmp_path, provider, "--tls-cert", str(cert), "--tls-key", str(key)) as proxy:
        port = int(proxy.url.rpartition(":")[2])
        first = ssl.get_server_certificate(("127.0.0.1", port))
        self_signed(tmp_path)
        proxy.process.send_signal(signal.SIGHUP)
        assert proxy.process.stderr is not None
        assert "certificates were read again" in proxy.process.stderr.readline()
        assert ssl.get_server_certificate(("127.0.0.1", port)) != first
        assert proxy.end()[0] == 0
