"""Servers that load an application and then fork: gunicorn --preload and Celery's prefork pool."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_cost_ops.ledger.types import Filter
from tests.unit.ledger.making import Sync
from tests.waiting import MAX_WAIT

ROOT = Path(__file__).parents[3]

APPLICATION = """
import os, threading
from llm_cost_ops import CostOpsClient

client = CostOpsClient(base_url="sqlite:///costs.db")

def submit(key):
    return client.usage.submit(
        organization_id="acme", provider="openai", model_id="gpt-4o", input_tokens=1, idempotency_key=key
    ).usage_id

# Warm, and written to by a thread of the parent while it forks its workers.
submit("preloaded")

def write():
    for n in range(200):
        submit(f"parent-{n}")

threading.Thread(target=write, daemon=True).start()
"""

WSGI = (
    APPLICATION
    + """
def application(environ, start_response):
    submit(environ["PATH_INFO"].strip("/"))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""
)

CELERY = (
    APPLICATION
    + """
from celery import Celery

app = Celery("tasks")
app.conf.update(
    broker_url="filesystem://", result_backend="file://results", broker_connection_retry_on_startup=True,
    broker_transport_options={"data_folder_in": "queue", "data_folder_out": "queue"},
)

@app.task
def record(key):
    submit(key)
    return os.getpid()
"""
)


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:

    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=folder, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(MAX_WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def check_kept(path: Path, keys: set[str]) -> None:
    with Sync(path) as store:
        records, _ = store.list_usage(Filter(), "timestamp", False, 10_000, None, None)
        assert keys <= {record.idempotency_key for record in records}
        for group_by in ((), ("label:x",)):
            assert sum(s.requests for _, _, s in store.summarize(Filter(), group_by, None)) == len(records)


@pytest.mark.slow
@needs("gunicorn")
def test_gunicorn_with_a_preloaded_client(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(WSGI)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def get(key: str) -> tuple[str, str]:
        for _ in range(100):
            try:
                with urllib.request.urlopen(f"http://{address}/{key}", timeout=60) as answer:
                    return key, answer.read().decode()
            except ConnectionError:
                time.sleep(0.1)
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionError):
                    raise
                time.sleep(0.1)
        raise AssertionError((tmp_path / "log").read_text())

    command = ("gunicorn", "--preload", "-w", "4", "-b", address, "app:application")
    with running(tmp_path, *command), ThreadPoolExecutor(8) as pool:
        told = list(pool.map(get, (f"request-{n}" for n in range(200))))
    assert len({worker for _, worker in told}) > 1
    check_kept(tmp_path / "costs.db", {"preloaded", *(key for key, _ in told)})


@pytest.mark.slow
@needs("celery")
def test_celerys_prefork_pool_with_a_warm_client(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(CELERY)
    for folder in ("queue", "results", "control"):
        (tmp_path / folder).mkdir()
    send = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tasks import record\n"
        "sent = [(f'task-{n}', record.delay(f'task-{n}')) for n in range(100)]\n"
        "for key, result in sent:\n"
        "    print(key, result.get(timeout=60))\n"
    )
    worker = ("celery", "-A", "tasks", "worker", "-c", "4", "-P", "prefork", "--loglevel", "warning")
    with running(tmp_path, *worker):
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-c", send],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    told = [line.split() for line in done.stdout.splitlines()]
    assert len(told) == 100
    assert len({process for _, process in told}) > 1
    check_kept(tmp_path / "costs.db", {"preloaded", *(key for key, _ in told)})
