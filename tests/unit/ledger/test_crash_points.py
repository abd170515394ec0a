"""Killed at a write: what was acknowledged is there, and rows, keys and sums agree.

Steps through the points at which the store writes to or syncs its files, which strace finds. Set
LLM_COST_OPS_CRASH_STEP=1 to be killed at each of them; by default a few are taken.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_cost_ops._gen.messages import SubmitStatus
from llm_cost_ops.ledger.types import Filter
from tests.unit.ledger.making import Sync, check_structure, entry

# Read before the suite takes the variables of whoever runs it away.
STEP = int(os.environ.get("LLM_COST_OPS_CRASH_STEP", "0"))

WORK = """
import os, sys
from llm_cost_ops.ledger.sqlite import sums
from tests.unit.ledger.making import Sync, entry
sums.FOLD_EVERY = 3
store = Sync(sys.argv[1])
for n in range(10):
    keys = [f"{n}-{i}" for i in range(1 + 3 * (n % 2))]
    text = {"text": "x" * 6000}
    store.append([entry(n * 86_400, idempotency_key=key, metadata=text) for key in keys])
    os.write(1, f"{n}\\n".encode())
store.aclose()
os.write(1, b"done\\n")
"""


def killed_at(path: Path, calls: str, when: int) -> list[str]:
    """What the work had acknowledged when it was killed at its `when`th of the system calls."""
    command = [
        "strace", "-f", "-qq", "-o", "/dev/null",
        "-P", str(path), "-P", f"{path}-wal", "-P", f"{path}-journal",
        "-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={when}",
        sys.executable, "-c", WORK, str(path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(("calls", "step"), [("pwrite64", 61), ("fdatasync,fsync", 9)])
def test_killed_at_any_write(tmp_path: Path, calls: str, step: int) -> None:
    points = 0
    for when in range(1, 2_000, STEP or step):
        path = tmp_path / f"{when}.db"
        told = killed_at(path, calls, when)
        points += 1
        check(path, told)
        if told[-1:] == ["done"]:
            break
    else:
        pytest.fail("the work never came to its end")
    assert points > 1, f"{points} points of {calls}"


def check(path: Path, told: list[str]) -> None:
    acknowledged = {f"{n}-{i}" for n in told if n != "done" for i in range(1 + 3 * (int(n) % 2))}
    with Sync(path) as store:
        records, _ = store.list_usage(Filter(), "timestamp", False, 100, None, None)
        kept = {record.idempotency_key for record in records}
        assert acknowledged <= kept
        # A batch is there whole or not at all.
        assert {key[0] for key in kept if key[0] in "13579"} == {key[0] for key in kept if key.endswith("-3")}
        for group_by in ((), ("user",), ("label:x",)):
            sums = store.summarize(Filter(), group_by, None)
            assert sum(s.requests for _, _, s in sums) == len(kept)
        text = {"text": "x" * 6000}
        again = [entry(int(k[0]) * 86_400, idempotency_key=k, metadata=text) for k in kept]
        assert {done.status for done in store.append(again)} <= {SubmitStatus.DUPLICATE}
    check_structure(path)
