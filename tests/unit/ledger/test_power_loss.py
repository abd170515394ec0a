"""Power loss, replayed: of what was written, any part that was not synced yet may be missing afterwards.

strace records every write, truncation and sync of a run. At each point of it states of the disk are made: all
that was synced is there, and of each later write nothing, a part of whole sectors, or all. In each state the
database opens, and holds what had been acknowledged by then. LONG_TESTS=1 makes states at every point.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from llm_cost_ops._gen.messages import SubmitStatus
from llm_cost_ops.ledger.types import Filter
from tests.unit.ledger.making import Sync, check_structure, entry

# Read before the suite takes the variables of whoever runs it away.
LONG = "LONG_TESTS" in os.environ
SECTOR = 512

WORK = """
import os, sys
from llm_cost_ops.ledger.sqlite import sums
from tests.unit.ledger.making import Sync, entry
sums.FOLD_EVERY = 3
store = Sync(sys.argv[1])
for n in range(int(sys.argv[2])):
    store.append([entry(n, idempotency_key=f"{n}-{i}", user_id=str(i)) for i in range(1 + n % 3)])
    os.write(1, f"acknowledged {n}\\n".encode())
    if n == 10:
        store.store._writer._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
store.aclose()
"""


class Event(NamedTuple):
    """A write to, a truncation or a sync of a file, or an acknowledgement (its number in `at`)."""

    kind: str
    file: str
    at: int = 0
    data: bytes = b""


def recorded(path: Path, commits: int) -> list[Event]:
    trace = path.with_suffix(".trace")
    command = [
        "strace", "-f", "-qq", "-y", "-xx", "-s", "1000000", "-o", str(trace),
        "-e", "trace=pwrite64,ftruncate,fdatasync,fsync,write,unlink",
        sys.executable, "-c", WORK, str(path), str(commits),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    events = []
    for line in trace.read_text().splitlines():
        event = parsed(line, path)
        if event is not None:
            events.append(event)
    return events


CALL = re.compile(r"^\d+\s+(\w+)\((?:(\d+)<([^>]*)>|\"([^\"]*)\")(?:, (.*))?\)\s+= (\d+)$")


def unescaped(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def parsed(line: str, path: Path) -> Event | None:
    found = CALL.match(line)
    if found is None:
        return None
    call, descriptor, opened, named, rest, _ = found.groups()
    name = unescaped(opened or named or "").decode()
    if call == "write" and descriptor == "1":
        words = unescaped(rest.split('"')[1]).split()
        return Event("ack", "", int(words[1])) if words[:1] == [b"acknowledged"] else None
    if name not in (str(path), f"{path}-wal"):
        return None
    if call == "pwrite64":
        _, data, numbers = rest.split('"')
        return Event("write", name, int(numbers.split(",")[2]), unescaped(data))
    kind = {"ftruncate": "truncate", "unlink": "unlink"}.get(call, "sync")
    return Event(kind, name, int(rest) if call == "ftruncate" else 0)


def applied(content: bytearray, event: Event, drawn: random.Random | None) -> None:
    """Do to a file what an event did; with `drawn`, nothing or a part of it perhaps."""
    data = event.data
    if drawn is not None:
        fate = drawn.random()
        if fate < 0.4:
            return
        if event.kind == "write" and fate < 0.6:
            data = data[: SECTOR * drawn.randrange(1 + len(data) // SECTOR)]
    if event.kind == "truncate":
        del content[event.at :]
        content.extend(bytes(event.at - len(content)))
    elif data:
        content.extend(bytes(max(0, event.at + len(data) - len(content))))
        content[event.at : event.at + len(data)] = data


def state(events: list[Event], drawn: random.Random) -> tuple[dict[str, bytearray], int]:
    """The files after a loss of power behind the events, and the last acknowledged number."""
    synced = {event.file: n for n, event in enumerate(events) if event.kind == "sync"}
    files: dict[str, bytearray] = {}
    acknowledged = -1
    for n, event in enumerate(events):
        if event.kind == "ack":
            acknowledged = event.at
        elif event.kind == "unlink":
            files.pop(event.file, None)
        elif event.kind != "sync":
            content = files.setdefault(event.file, bytearray())
            applied(content, event, None if n < synced.get(event.file, -1) else drawn)
    return files, acknowledged


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_every_state_that_a_loss_of_power_leaves(tmp_path: Path) -> None:
    seed = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(1 << 32))
    drawn = random.Random(seed)
    events = recorded(tmp_path / "traced.db", 20)
    kinds = [event.kind for event in events]
    assert kinds.count("ack") == 20
    assert kinds.count("sync") >= 20
    # Before the first acknowledgement there is nothing to lose.
    first = kinds.index("ack")
    states = 0
    for end in range(first + 1, len(events) + 1, 1 if LONG else 12):
        for _ in range(4 if LONG else 1):
            files, acknowledged = state(events[:end], drawn)
            check(tmp_path / "replayed", files, acknowledged, str(tmp_path / "traced.db"))
            states += 1
    print(f"{states} states of {len(events)} events, seed {seed}")  # noqa: T201  # the figure is what it is about
    assert states >= (300 if LONG else 10)


def check(folder: Path, files: dict[str, bytearray], acknowledged: int, traced: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "costs.db"
    for name, content in files.items():
        Path(name.replace(traced, str(path))).write_bytes(content)
    keys = [(n, i) for n in range(acknowledged + 1) for i in range(1 + n % 3)]
    with Sync(path) as store:
        again = [entry(n, idempotency_key=f"{n}-{i}", user_id=str(i)) for n, i in keys]
        held = store.count(Filter())
        assert held >= len(keys)
        assert {done.status for done in store.append(again)} == {SubmitStatus.DUPLICATE}
        assert store.count(Filter()) == held
        for group_by in ((), ("user",), ("label:x",)):
            assert sum(s.requests for _, _, s in store.summarize(Filter(), group_by, None)) == held
    check_structure(path)
