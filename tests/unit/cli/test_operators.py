"""docs/operators.md and docs/backup.md: every command runs, in the page's order."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_cost_ops.catalog import load, use_catalog
from llm_cost_ops.cli import main
from tests.served import Served, served
from tests.tunnels import self_signed

PROGRAM = (sys.executable, "-m", "llm_cost_ops")
PAGE = Path(__file__).parents[3] / "docs" / "operators.md"
ROW = re.compile(r"^\| (?P<asked>.*?) \| (?P<here>.*) \|$", re.MULTILINE)
COMMAND = re.compile(r"`((?:LLM_\w+=\S+ )?(?:llm-cost-ops|curl) [^`]*)`")
CALL = {
    "organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000,
    "output_tokens": 7, "user_id": "u-1", "labels": {"team": "search"},
}  # fmt: skip
SPANS = {
    "resourceSpans": [
        {
            "resource": {"attributes": [{"key": "organization_id", "value": {"stringValue": "acme"}}]},
            "scopeSpans": [],
        }
    ]
}


def rows() -> list[tuple[str, list[str]]]:
    """What is asked for, and the commands that do it; [] for a row that has none."""
    return [
        (row["asked"], COMMAND.findall(row["here"]))
        for row in ROW.finditer(PAGE.read_text(encoding="utf-8"))
        if row["asked"] not in ("what is asked for", "---")
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name in ("LLM_COST_OPS_BASE_URL", "LLM_COST_OPS_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    Path("serve.toml").write_text('http = "127.0.0.1:0"\naccess_log = "text"\n', encoding="utf-8")
    cert, key = self_signed(tmp_path)
    for path, name in ((cert, "server.pem"), (key, "server.key")):
        if path.name != name:
            shutil.copy(path, name)
    Path("call.json").write_text(json.dumps(CALL), encoding="utf-8")
    Path("spans.json").write_text(json.dumps(SPANS), encoding="utf-8")
    house = {**CALL, "organization_id": None, "provider": "house", "model_id": "chat-1"}
    lines = [json.dumps({name: value for name, value in each.items() if value}) for each in (CALL, house)]
    Path("usage.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shutil.copy(load._BUNDLED, "prices.bin")
    Path("llm_cost_ops.spool").mkdir(mode=0o700)
    before = use_catalog(None)
    yield tmp_path
    use_catalog(before)


class Shell:
    """Runs the commands of the page: what ends, in this process; what serves, as one of its own."""

    def __init__(self, server: Served, capsys: pytest.CaptureFixture[str]) -> None:
        self._server = server
        self._capsys = capsys
        self._capsys.readouterr()
        self._key = ""

    def run(self, line: str) -> tuple[int, str]:
        """The exit status, and what was printed."""
        words = shlex.split(line)
        if words[0] == "curl":
            return self._curl(words)
        variables = [word for word in words if word.startswith("LLM_")]
        command = [self._id(word) for word in words[len(variables) + 1 :]]
        if variables:
            environment = {**os.environ, **dict(each.split("=", 1) for each in variables)}
            done = subprocess.run(
                [*PROGRAM, *command], capture_output=True, text=True, env=environment, check=False, timeout=60
            )
            return done.returncode, done.stdout + done.stderr
        if command[0] == "dashboard":
            return self._dashboard(command)
        if command[0] in ("serve", "proxy"):
            command = [*command, *([] if "--check" in command else ["--check"])]
        status = main(command)
        printed, errors = self._capsys.readouterr()
        if command[:2] == ["keys", "create"] and not self._key:
            self._key = printed.strip()
        return status, printed + errors

    def _curl(self, words: list[str]) -> tuple[int, str]:
        url = self._server.urls[0].removeprefix("http://")
        asked = ["--fail-with-body" if word == "-s" else word for word in words]
        asked = [
            word.replace("localhost:8080", url).replace("$LLM_COST_OPS_API_KEY", self._key) for word in asked
        ]
        done = subprocess.run([*asked, "-sS"], capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def _dashboard(self, command: list[str]) -> tuple[int, str]:
        with subprocess.Popen(
            [*PROGRAM, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            made = Served(process)
            made.wait_for("listening on", 60)
            return made.end(), made.text

    def _id(self, word: str) -> str:
        if word == "KEY_ID":
            return self._listed("keys", "list", "--json")[-1]["id"]
        return self._listed("usage", "list", "--json")[-1]["id"] if word == "ID" else word

    def _listed(self, *command: str) -> list[dict[str, str]]:
        assert main(command) == 0
        found: list[dict[str, str]] = json.loads(self._capsys.readouterr().out)
        return found


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_command_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = []
    with served("--config", "serve.toml") as server:
        shell = Shell(server, capsys)
        for asked, lines in rows():
            for line in lines:
                status, printed = shell.run(line)
                if status != 0:
                    failed.append((asked, line, status, printed))
    assert failed == [], "\n".join(map(str, failed))
    assert {path.name for path in folder.iterdir()} >= {"backup.db", "restored.db", "copy.db", "usage.csv"}


def test_the_commands_of_the_page_on_backups_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "usage.jsonl", "--db", "costs.db", "--set", "organization_id=acme"]) == 0
    lines = re.findall(r"^\$ (.*)$", PAGE.with_name("backup.md").read_text(encoding="utf-8"), re.MULTILINE)
    for line in lines:
        if line.startswith("llm-cost-ops "):
            assert main(shlex.split(line)[1:]) == 0, line
        else:
            subprocess.run(["sh", "-c", line], check=True)
    assert {"costs.db", "tried.db"} <= {path.name for path in folder.iterdir()}
    assert "2 requests" in capsys.readouterr().out


def test_each_row_has_a_command_a_page_or_a_no() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(rows()) > 40
    for row in ROW.finditer(page):
        here = row["here"]
        assert "`" in here or "](" in here or here.startswith(("no", "by ", "---", "here")), row[0]
