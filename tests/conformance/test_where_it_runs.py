"""gunicorn, Celery and a function that is frozen, as docs/where-it-runs.md has them: everything counts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient
from tests.conformance.clients import running_server
from tests.ports import free_port
from tests.waiting import MAX_WAIT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "where-it-runs.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))


SPOOL = 'recorder=RecorderConfig(spool="spool"),'
assert SPOOL in FILES["app.py"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("costs"), "--http", "127.0.0.1:0") as urls:
        yield urls["http"]


@pytest.fixture
def counted(url: str) -> Iterator[CounterOf]:
    with CostOpsClient(base_url=url) as client:
        yield CounterOf(client)


class CounterOf:
    """How many requests came to count since it was made."""

    def __init__(self, client: CostOpsClient) -> None:
        self._client = client
        self._before = self._total()

    def _total(self) -> int:
        return self._client.costs.get(organization_id="acme").total_requests

    def reach(self, count: int) -> int:
        """The number, once it is `count`, or after a minute."""
        until = time.monotonic() + MAX_WAIT
        while (found := self._total() - self._before) < count and time.monotonic() < until:
            time.sleep(0.05)
        return found


@contextmanager
def running(folder: Path, url: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a folder with the files of the page, ended with SIGTERM."""
    for name, code in FILES.items():
        if not (folder / name).exists():
            (folder / name).write_text(code, encoding="utf-8")
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": paths, "COSTS_URL": url}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        yield process
        process.terminate()
        assert process.wait(MAX_WAIT) == 0, (folder / "log").read_text()
    finally:
        process.kill()
        process.wait()


def get(address: str) -> None:
    """Ask, and ask again while nobody listens or a worker is ended."""
    until = time.monotonic() + MAX_WAIT
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/", timeout=MAX_WAIT) as answer:
                assert answer.read() == b"answered"
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["", "end often", "are killed"])
def test_gunicorn(url: str, counted: CounterOf, tmp_path: Path, workers: str) -> None:
    pytest.importorskip("gunicorn")
    address = f"127.0.0.1:{free_port()}"
    arguments = ["-m", "gunicorn", "--preload", "--workers", "3", "--bind", address, "app:application"]
    if workers == "end often":
        arguments += ["--max-requests", "10"]
    if workers != "are killed":
        (tmp_path / "app.py").write_text(FILES["app.py"].replace(SPOOL, ""))
    asked = 60
    with running(tmp_path, url, *arguments) as process, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: get(address), range(asked)))
        if workers == "are killed":
            for child in subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split():
                os.kill(int(child), signal.SIGKILL)
            list(pool.map(lambda _: get(address), range(asked)))
            asked *= 2
    # An answer that was lost with its worker was asked for again.
    found = counted.reach(asked)
    assert asked <= found <= asked + (10 if workers else 0)


CALLER = """
import tasks
sent = [tasks.summarize.delay("A long story") for _ in range(60)]
assert [task.get(timeout=60) for task in sent] == ["A long sto"] * 60
"""
CELERY = """
from tasks import app
app.conf.update(
    broker_url="filesystem://", result_backend="file://results", broker_connection_retry_on_startup=True,
    broker_transport_options={"data_folder_in": "queue", "data_folder_out": "queue"},
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("most", ["", "10"])
def test_celerys_prefork_pool(url: str, counted: CounterOf, tmp_path: Path, most: str) -> None:
    pytest.importorskip("celery")
    for folder in ("queue", "results", "control"):
        (tmp_path / folder).mkdir()
    (tmp_path / "configured.py").write_text(CELERY)
    arguments = ["-m", "celery", "-A", "configured", "worker", "-c", "3", "--loglevel", "warning"]
    if most:
        arguments += ["--max-tasks-per-child", most]
    with running(tmp_path, url, *arguments):
        caller = [sys.executable, "-c", CELERY + CALLER]
        done = subprocess.run(
            caller, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    assert counted.reach(60) == 60, (tmp_path / "log").read_text()


LAMBDA = """
import handler, time
pending = 0
for number in range(200):
    pending += handler.handler({}, None)["pending"] > 0
    time.sleep(0.01)
# Those that met the freeze, and those that a busy machine gave no time; their records were sent after it.
assert pending <= 100, pending
assert handler.client.flush(60).pending == 0
"""


@pytest.mark.slow
def test_a_function_that_is_frozen_and_thawed(url: str, counted: CounterOf, tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(FILES["handler.py"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COSTS_URL": url}
    with subprocess.Popen([sys.executable, "-c", LAMBDA], cwd=tmp_path, env=environment) as process:
        assert counted.reach(1) >= 1
        for pause in (0.5, 3.0):
            process.send_signal(signal.SIGSTOP)
            time.sleep(pause)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.2)
        assert process.wait(60) == 0
    assert counted.reach(200) == 200
