"""The portal: what threads get back from its loop, also when it ends before they do."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

import pytest

from llm_cost_ops.transports.grpc import portal as module
from llm_cost_ops.transports.grpc.portal import Portal
from tests.waiting import MAX_WAIT, in_threads


@pytest.fixture
def portal():
    made = Portal("test-portal")
    yield made
    made.close()


async def doubled(number):
    await asyncio.sleep(0)
    if number < 0:
        raise ValueError(number)
    return 2 * number


def test_results_and_errors_come_back(portal):
    assert portal.run(lambda: doubled(21)) == 42
    with pytest.raises(ValueError, match="-1"):
        portal.run(lambda: doubled(-1))


def test_each_of_many_threads_gets_its_own(portal):
    found = {}

    def ask(number):
        for at in range(50):
            found[number, at] = portal.run(lambda: doubled(number * 50 + at))  # noqa: B023  # it waits

    in_threads([partial(ask, number) for number in range(16)])
    assert found == {(number, at): 2 * (number * 50 + at) for number in range(16) for at in range(50)}
    assert sum(thread.name == "test-portal" for thread in threading.enumerate()) == 1


def test_what_does_not_end_in_time_is_cancelled(portal, monkeypatch):
    monkeypatch.setattr(module, "SLACK", 0.05)
    cancelled = threading.Event()

    async def endless():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(TimeoutError):
        portal.run(endless, 0.0)
    assert cancelled.wait(MAX_WAIT)


def test_closing_ends_what_runs_and_what_has_not_begun(portal):
    errors = []
    blocked, go_on = threading.Event(), threading.Event()

    async def block():
        blocked.set()
        go_on.wait(MAX_WAIT)
        await asyncio.sleep(1000)

    def ask(work):
        with pytest.raises(RuntimeError, match="closed") as raised:
            portal.run(work)
        errors.append(raised.value)

    threads = [threading.Thread(target=ask, args=(block,))]
    threads[0].start()
    assert blocked.wait(MAX_WAIT)
    threads += [threading.Thread(target=ask, args=(lambda: asyncio.sleep(1000),)) for _ in range(3)]
    for thread in threads[1:]:
        thread.start()
    while len(portal._calls) < 3:
        time.sleep(0.001)
    closing = threading.Thread(target=portal.close)
    closing.start()
    go_on.set()
    for thread in [*threads, closing]:
        thread.join(MAX_WAIT)
    assert len(errors) == 4
    with pytest.raises(RuntimeError, match="closed"):
        portal.run(lambda: doubled(1))


def test_the_exception_does_not_keep_what_the_call_held(portal):
    import gc
    import weakref

    class Held:
        pass

    def ask():
        held = Held()
        kept.append(weakref.ref(held))
        with pytest.raises(ValueError, match="-1"):
            portal.run(lambda: doubled(-1))

    kept = []
    gc.disable()
    try:
        ask()
        assert kept[0]() is None
    finally:
        gc.enable()
