"""What was recorded counts, however its process ends and whichever made it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient
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
config = ClientConfig(base_url=URL, recorder=RecorderConfig(spool=SPOOL))
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
    "a thread that exits": ("threading.Thread(target=lambda: (record(), sys.exit())).start()", 5),
}


def recorded_by(program: str, tmp_path: Path, *, spool: bool, late: int = 0) -> int:
    url, folder = f"sqlite:///{tmp_path}/costs.db", str(tmp_path / "spool") if spool else None
    given = f"URL, SPOOL, LATE = {url!r}, {folder!r}, {late}\n"
    command = [sys.executable, "-c", given + PROGRAM + program]
    subprocess.run(command, check=True, timeout=MAX_WAIT * 3)
    if spool:
        # What is left is sent by who comes next.
        subprocess.run([sys.executable, "-c", given + PROGRAM + "record(1)\nclient.flush()"], check=True)
    with CostOpsClient(base_url=url) as client:
        return client.costs.get(organization_id="o").total_requests - spool


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("spool", [False, True])
@pytest.mark.parametrize("end", list(ENDS))
def test_what_was_recorded_counts(end: str, spool: bool, tmp_path: Path) -> None:
    if end == "a thread that exits" and not spool and (3, 12, 0) <= sys.version_info < (3, 12, 2):
        pytest.skip("this Python starts no thread once the main one has ended, as others do")
    program, records = ENDS[end]
    assert recorded_by(program, tmp_path, spool=spool) == records


def test_what_is_recorded_after_the_client_was_closed_at_the_end_is_kept_in_the_spool(tmp_path: Path) -> None:
    assert recorded_by("record()", tmp_path, spool=True, late=3) == 5 + 3
