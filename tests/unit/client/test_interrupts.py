"""Ctrl-C, signal handlers and finalizers, at each point where they can come into a call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.served import served

ROOT = Path(__file__).parents[3]


def interrupted(tmp_path: Path, place: str, call: str, what: str) -> str:
    url = place.format(tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "tests.interrupted_client", url, call, what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("call", ["submit", "batch", "query", "record"])
@pytest.mark.parametrize("place", ["sqlite:///{}/costs.db", "sqlite://", "{0}/spool|sqlite:///{0}/costs.db"])
def test_ctrl_c_keeps_no_turn_and_loses_no_record(tmp_path: Path, place: str, call: str) -> None:
    said = interrupted(tmp_path, place, call, "raise")
    assert said.endswith("lost: []\n")
    assert int(said.split()[0]) >= (10 if call == "record" else 50) / 2


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_ctrl_c_in_a_call_over_the_network_leaves_the_next_ones_alone(tmp_path: Path, transport: str) -> None:
    """They have its turn, and no connection of which nobody knows where it stands."""
    database = ("--db", str(tmp_path / "served.db"), "--durability", "process")
    with served(*database, f"--{transport}", "127.0.0.1:0") as server:
        said = interrupted(tmp_path, server.urls[0], "submit", "raise")
    assert int(said.split()[0]) >= (500 if transport == "http" else 40)


@pytest.mark.parametrize("nested", ["submit", "query", "record"])
@pytest.mark.parametrize("call", ["submit", "record"])
@pytest.mark.parametrize("place", ["sqlite://", "{0}/spool|sqlite:///{0}/costs.db"])
def test_a_call_within_a_call_of_its_thread_is_made_or_refused_at_once(
    tmp_path: Path, place: str, call: str, nested: str
) -> None:
    """As of a signal handler, or of an object that is collected."""
    said = interrupted(tmp_path, place, call, nested)
    assert said.endswith("lost: []\n")
    assert "'done'" in said
    assert ("in the middle of another call" in said) <= (nested != "record")
