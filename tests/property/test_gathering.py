"""The policy of what leaves together, by any sequence of events: the model is a plain list of what waits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_cost_ops.client.gathering import HALVED, Gatherer


class Gathering(RuleBasedStateMachine):
    """Items come, give up, and are sent; what is sent ends at any time."""

    @initialize(records=st.integers(1, 6), size=st.integers(1, 40), in_flight=st.integers(1, 4))
    def begin(self, records: int, size: int, in_flight: int) -> None:
        self.bounds = records, size, in_flight
        self.gatherer: Gatherer[int] = Gatherer(records, size, in_flight)
        self.ids: Iterator[int] = count()
        self.waiting: dict[int, int] = {}
        self.flying: list[list[int]] = []
        self.ended: list[int] = []
        self.given_up: set[int] = set()
        self.came = 0

    @rule(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=12))
    def come(self, sizes: list[int]) -> None:
        for size in sizes:
            item = next(self.ids)
            self.came += 1
            overtakes = bool(self.waiting)
            if self.gatherer.enter():
                assert not overtakes
                self.flying.append([item])
            else:
                self.gatherer.add(item, size)
                self.waiting[item] = size

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        ended = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.ended += ended
        most_records, most_bytes, _ = self.bounds
        for leaving in self.gatherer.leave():
            assert leaving == list(self.waiting)[: len(leaving)]  # first come, first served
            assert 1 <= len(leaving) <= most_records
            size = sum(self.waiting.pop(item) for item in leaving)
            assert size <= most_bytes or len(leaving) == 1
            self.flying.append(leaving)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.gatherer.remove(item)
        assert not self.gatherer.remove(item)
        del self.waiting[item]
        self.given_up.add(item)

    @rule()
    def give_up_what_flies(self) -> None:
        assert not any(self.gatherer.remove(item) for items in self.flying for item in items)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "gatherer"):
            return
        assert len(self.gatherer) == len(self.waiting)
        assert self.gatherer.in_flight == len(self.flying) <= self.bounds[2]
        assert self.flying or not self.waiting  # what waits is sent when something ends

    def teardown(self) -> None:
        if not hasattr(self, "gatherer"):
            return
        while self.flying:
            self.ended += self.flying.pop()
            self.flying += self.gatherer.leave()
        assert not len(self.gatherer)
        assert sorted([*self.ended, *self.given_up]) == list(range(self.came))  # each once


TestGathering = Gathering.TestCase


@given(callers=st.integers(9, 3000))
def test_callers_that_submit_again_at_once_ride_together(callers: int) -> None:
    """Those that are answered come back before the turn is given on, as in an event loop."""
    gatherer: Gatherer[int] = Gatherer(1000, 2**20, 4)
    flying: list[list[int]] = []

    def come(callers: list[int]) -> None:
        for caller in callers:
            if gatherer.enter():
                flying.append([caller])
            else:
                gatherer.add(caller, 300)

    come(list(range(callers)))
    sent = 0
    for _ in range(60):
        answered = flying.pop(0)
        come(answered)
        leaving = gatherer.leave()
        flying += leaving
        sent += sum(map(len, leaving))
    assert sent / 60 >= min(callers, HALVED) / 4
    assert sorted([*(c for items in flying for c in items), *gatherer._waiting]) == list(range(callers))


def test_many_that_wait_leave_in_two_halves() -> None:
    gatherer: Gatherer[int] = Gatherer(1000, 2**20, 4)
    while gatherer.enter():
        pass
    for item in range(600):
        gatherer.add(item, 300)
    assert [gatherer.leave() for _ in range(2)] == [[], []]
    assert [len(items) for items in gatherer.leave()] == [600]


def test_a_single_turn_is_never_halved() -> None:
    gatherer: Gatherer[int] = Gatherer(1000, 2**20, 1)
    assert gatherer.enter()
    for item in range(600):
        gatherer.add(item, 300)
    assert [len(items) for items in gatherer.leave()] == [600]
