"""What was recorded counts, however its process ends and whichever made it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient
from tests.served import served
from tests.waiting import MAX_WAIT

PROGRAM = """
import atexit, multiprocessing, os, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
from llm_cost_ops import ClientConfig, CostOpsClient, RecorderConfig

def record(times=5):
    for _ in range(times):
        client.usage.record(organization_id="o", provider="openai", model_id="m", input_tokens=1)

def work(number):
    record(1)

atexit.register(record, LATE)
config = ClientConfig(base_url=URL, recorder=RecorderConfig(spool=SPOOL, shutdown_timeout=60))
client = CostOpsClient(config=config)
"""

ENDS = {
    "a forked process": (
        """
child = multiprocessing.get_context("fork").Process(target=record)
child.start()
child.join()
sys.exit(child.exitcode)
""",
        5,
    ),
    "a pool of processes": (
        """
record()
with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
    list(pool.map(work, range(20)))
""",
        25,
    ),
    "a process that is forked as a thread records": (
        """
began = threading.Event()
def first():
    began.set()
    record()
thread = threading.Thread(target=first)
thread.start()
began.wait()
children = [multiprocessing.get_context("fork").Process(target=record) for _ in range(4)]
for child in children:
    child.start()
for child in children:
    child.join(20)
thread.join()
if any(child.exitcode for child in children) or None in [child.exitcode for child in children]:
    os._exit(1)
""",
        25,
    ),
    "a function of atexit's, in a process that used multiprocessing since": (
        """
del sys.modules["multiprocessing.util"]
record()
atexit.register(record, 3)
import multiprocessing.util
CostOpsClient(config=ClientConfig(base_url=URL)).usage.record(
    organization_id="o", provider="openai", model_id="m", input_tokens=1
)
""",
        9,
    ),
    "a thread that goes on after the main one": (
        """
def work():
    threading.main_thread().join()
    record()
    sys.exit()
threading.Thread(target=work).start()
""",
        5,
    ),
    "such a thread, in a program that has recorded": (
        """
record()
def work():
    threading.main_thread().join()
    record()
    client.close()
threading.Thread(target=work).start()
""",
        10,
    ),
    "a function of atexit's that is the first to record": ("atexit.register(record)", 5),
    "functions of atexit's": ("record()\natexit.register(record)", 10),
    "a client that is dropped where no thread starts": (
        """
def refuse(_):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
CostOpsClient(config=config).usage.record(
    organization_id="o", provider="openai", model_id="m", input_tokens=1
)
""",
        1,
    ),
}


def recorded_by(program: str, tmp_path: Path, *, spool: bool, late: int = 0) -> int:
    url, folder = f"sqlite:///{tmp_path}/costs.db", str(tmp_path / "spool") if spool else None
    given = f"URL, SPOOL, LATE = {url!r}, {folder!r}, "
    command = [sys.executable, "-c", f"{given}{late}\n{PROGRAM}{program}"]
    subprocess.run(command, check=True, timeout=MAX_WAIT * 3)
    if spool:
        # What is left is sent by who comes next.
        last = f"{given}0\n{PROGRAM}record(1)\nclient.flush()"
        subprocess.run([sys.executable, "-c", last], check=True)
    with CostOpsClient(base_url=url) as client:
        return client.costs.get(organization_id="o").total_requests - spool


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("spool", [False, True])
@pytest.mark.parametrize("end", list(ENDS))
def test_what_was_recorded_counts(end: str, spool: bool, tmp_path: Path) -> None:
    program, records = ENDS[end]
    assert recorded_by(program, tmp_path, spool=spool) == records


def test_what_is_recorded_after_the_client_was_closed_at_the_end_is_kept_in_the_spool(tmp_path: Path) -> None:
    assert recorded_by("record()", tmp_path, spool=True, late=3) == 5 + 3


@pytest.mark.parametrize("recorded", [0, 5])
def test_what_is_recorded_at_the_very_end_counts(recorded: int, tmp_path: Path) -> None:
    """By functions of atexit that were registered before the package was imported: its own was called."""
    assert recorded_by(f"record({recorded})", tmp_path, spool=False, late=3) == recorded + 3


AT_THE_END = """
import asyncio, atexit, logging, sys, threading, time
logging.basicConfig()
URL, ASYNC, WHEN = sys.argv[1], sys.argv[2] == "async", sys.argv[3]
USAGE = {"organization_id": sys.argv[4], "provider": "openai", "model_id": "m", "input_tokens": 1}

async def use():
    async with AsyncCostOpsClient(config=config) as client:
        await client.usage.submit(**USAGE)
        client.usage.record(**USAGE)
        await client.flush()
        await client.usage.submit(**USAGE)
        print((await client.costs.get(organization_id=USAGE["organization_id"])).total_requests)

def work():
    if WHEN == "thread":
        threading.main_thread().join()
    if ASYNC:
        asyncio.run(use())
        return
    with CostOpsClient(config=config) as client:
        client.usage.submit(**USAGE)
        client.usage.record(**USAGE)
        client.flush()
        client.usage.submit(**USAGE)
        print(client.costs.get(organization_id=USAGE["organization_id"]).total_requests)

if WHEN == "late":
    atexit.register(work)
from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient, RecorderConfig
config = ClientConfig(base_url=URL, recorder=RecorderConfig(shutdown_timeout=60))
if WHEN == "thread":
    threading.Thread(target=work).start()
if WHEN == "early":
    atexit.register(work)
"""


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where to record: by the name of the transport."""
    folder = tmp_path_factory.mktemp("ends")
    listeners = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with served("--db", str(folder / "served.db"), *listeners, listeners=2) as server:
        http, grpc = (url.replace("127.0.0.1", "localhost") for url in sorted(server.urls, reverse=True))
        yield {"memory": "sqlite://", "file": f"sqlite:///{folder}/costs.db", "http": http, "grpc": grpc}


@pytest.mark.parametrize("when", ["thread", "early", "late"])
@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("transport", ["memory", "file", "http", "grpc"])
def test_a_client_that_is_first_used_at_the_end(
    transport: str, colour: str, when: str, urls: dict[str, str]
) -> None:
    """Where Python starts no threads any more: calls, names, commits and records are had without."""
    command = [
        sys.executable,
        "-c",
        AT_THE_END,
        urls[transport],
        colour,
        when,
        f"{transport}-{colour}-{when}",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=MAX_WAIT * 3)
    assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_such_a_client_of_postgresql(colour: str, postgres_url: str) -> None:
    command = [sys.executable, "-c", AT_THE_END, postgres_url, colour, "early", "o"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=MAX_WAIT * 3)
    assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)


def test_what_can_not_be_sent_at_the_end_is_said_and_holds_nobody_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        program = f"""
import logging, time
logging.basicConfig()
config = ClientConfig(
    base_url="http://127.0.0.1:{silent.getsockname()[1]}", recorder=RecorderConfig(shutdown_timeout=0.5)
)
client = CostOpsClient(config=config)
began = time.monotonic()
atexit.register(lambda: (record(), client.close(), print(time.monotonic() - began < 20)))
"""
        given = "URL, SPOOL, LATE = 'sqlite://', None, 2\n"
        command = [sys.executable, "-c", given + PROGRAM + program]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=MAX_WAIT * 3)
    assert "5 records were not sent before the client was closed, and are lost" in done.stderr
    assert "records are dropped: the client is closed" in done.stderr
    assert done.stdout == "True\n"
