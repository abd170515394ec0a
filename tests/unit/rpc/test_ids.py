"""Ids: their form, their order, and that no two are the same in threads and forks."""

from __future__ import annotations

import os
import random
import time
import uuid
import warnings
from functools import partial

from llm_cost_ops.rpc.context import uuid7
from tests.waiting import in_threads


def test_form() -> None:
    found = uuid.UUID(uuid7())
    assert (found.version, found.variant) == (7, uuid.RFC_4122)


def test_each_is_greater_than_the_one_before() -> None:
    ids = [uuid7() for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_threads() -> None:
    made: list[list[str]] = [[] for _ in range(8)]

    def make(ids: list[str]) -> None:
        ids += [uuid7() for _ in range(5_000)]

    in_threads([partial(make, ids) for ids in made])
    assert all(ids == sorted(ids) for ids in made)
    assert len({found for ids in made for found in ids}) == 40_000


def test_a_seed_of_the_program_changes_nothing() -> None:
    random.seed(1)
    first = uuid7()
    time.sleep(0.003)  # random bits are drawn in each millisecond
    random.seed(1)
    assert abs(int(uuid7()[-12:], 16) - int(first[-12:], 16)) > 1


def test_a_child_has_random_bits_of_its_own() -> None:
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Later Pythons warn of any fork while there are threads; this child does next to nothing.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.write(write, uuid7().encode())
        os._exit(0)
    mine = uuid7()
    os.waitpid(child, 0)
    theirs = os.read(read, 36).decode()
    os.close(read)
    os.close(write)
    assert theirs[-17:] != mine[-17:]
