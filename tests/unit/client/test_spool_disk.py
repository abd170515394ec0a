"""The spool on a disk: what is promised of fsync, and what happens when a call to the system fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_cost_ops.client.spool import Spool
from tests.unit.client.test_spool import drained


@pytest.mark.parametrize("sent", [False, True])
def test_each_record_is_synced_whichever_segment_it_is_in(
    sent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A segment ends because it is full, or because all that is in it was sent.
    synced: dict[int, int] = {}
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        real(descriptor)
        facts = os.fstat(descriptor)
        synced[facts.st_ino] = facts.st_size

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    spool = Spool(tmp_path, durability="disk", segment_bytes=200)
    for number in range(40):
        spool.append(b"record %d" % number)
        written = [path.stat() for path in tmp_path.iterdir()]
        assert [synced.get(facts.st_ino) for facts in written] == [facts.st_size for facts in written], number
        if sent and number % 5 == 4:
            assert len(drained(spool)) == 5
    spool.close()
