"""The policy of what leaves together, by any sequence of events: the model is a plain list of what waits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from hypothesis import given, settings
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
        for leaving in self.gatherer.leave(len(ended)):
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

    @precondition(lambda self: any(len(items) > 1 for items in self.flying))
    @rule(data=st.data())
    def fall_out(self, data: st.DataObject) -> None:
        """One whose call is over before its batch is sent by somebody else."""
        items = data.draw(st.sampled_from([items for items in self.flying if len(items) > 1]))
        self.given_up.add(items.pop())
        self.gatherer.lose(1)

    @rule()
    def give_up_what_flies(self) -> None:
        assert not any(self.gatherer.remove(item) for items in self.flying for item in items)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "gatherer"):
            return
        assert self.gatherer._bytes == sum(self.waiting.values())
        assert len(self.gatherer) == len(self.waiting)
        assert self.gatherer.in_flight == len(self.flying) <= self.bounds[2]
        assert self.gatherer.sent == sum(map(len, self.flying))
        assert self.flying or not self.waiting  # what waits is sent when something ends

    def teardown(self) -> None:
        if not hasattr(self, "gatherer"):
            return
        while self.flying:
            ended = self.flying.pop()
            self.ended += ended
            self.flying += self.gatherer.leave(len(ended))
        assert not len(self.gatherer)
        assert sorted([*self.ended, *self.given_up]) == list(range(self.came))  # each once


TestGathering = Gathering.TestCase


def in_turns(callers: int, sendings: int) -> list[int]:
    """The sizes of the last sendings of so many callers, which submit again as soon as they are answered.

    As in an event loop, they come back before the turn is given on; sendings end in the order in which they
    began.
    """
    gatherer: Gatherer[int] = Gatherer(1000, 2**20, 4)
    flying: list[list[int]] = []

    def come(callers: list[int]) -> None:
        for caller in callers:
            if gatherer.enter():
                flying.append([caller])
            else:
                gatherer.add(caller, 300)

    come(list(range(callers)))
    sizes = []
    for _ in range(sendings):
        answered = flying.pop(0)
        come(answered)
        leaving = gatherer.leave(len(answered))
        flying += leaving
        sizes.append(len(answered))
    assert sorted([*(c for items in flying for c in items), *gatherer._waiting]) == list(range(callers))
    return sizes[8:]


@settings(max_examples=20)
@given(callers=st.integers(9, 3000))
def test_callers_that_submit_again_at_once_ride_together(callers: int) -> None:
    sizes = in_turns(callers, 60)
    assert sum(sizes) / len(sizes) >= min(callers, HALVED) / 4


@settings(max_examples=20)
@given(callers=st.integers(HALVED, 2000))
def test_many_callers_are_two_halves_by_turns(callers: int) -> None:
    """Not all but one of them together, while that one goes alone: nobody would be answered meanwhile."""
    assert {*in_turns(callers, 40)} <= {callers // 2, callers - callers // 2}


def test_many_that_wait_leave_in_two_halves() -> None:
    gatherer: Gatherer[int] = Gatherer(1000, 2**20, 4)
    while gatherer.enter():
        pass
    for item in range(600):
        gatherer.add(item, 300)
    assert [gatherer.leave() for _ in range(2)] == [[], []]
    assert [len(items) for items in gatherer.leave()] == [301]  # of 600 that wait, and one that is sent
    assert [len(items) for items in gatherer.leave()] == [299]


def test_a_single_turn_is_never_halved() -> None:
    gatherer: Gatherer[int] = Gatherer(1000, 2**20, 1)
    assert gatherer.enter()
    for item in range(600):
        gatherer.add(item, 300)
    assert [len(items) for items in gatherer.leave()] == [600]
