"""Batching of threads that share a sync client."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from functools import partial
from typing import Any

from llm_cost_ops.client.batching import (
    ALONE,
    Batching,
    Flight,
    Group,
    Groups,
    Rider,
    deadline_of,
    settle,
    size_of,
    too_late,
)
from llm_cost_ops.client.thread_turns import ThreadTurn, Waking
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import UnaryContinuation

__all__ = ["ThreadBatching"]


class ThreadBatching(Batching):
    """Batching of threads: one of those that wait sends for all, the one with the latest deadline."""

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._groups: Groups = {}
        # By thread, where its turn to send alone is from.
        self._turns: dict[int, Group] = {}

    async def _submit(
        self, key: Hashable, continuation: UnaryContinuation[Any, Any], request: Any, context: CallContext
    ) -> Any:
        thread = threading.get_ident()
        with self._lock:
            # Ctrl-C may have come before a call of this thread gave its turn back; or this call is made
            # within one that has a turn, and would wait for it.
            self._give_back(thread)
            group = self._of(self._groups, key)
            entered = group.enter()
            if entered:
                self._turns[thread] = group
            else:
                rider = Rider(group, continuation, request, context, ThreadTurn())
                group.add(rider, size_of(request))
        if not entered:
            outcome = await self._outcome(rider)
            if isinstance(outcome, Flight):
                outcome = await self._lead(rider, outcome)
            if outcome is ALONE:
                return await continuation(request, context)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is not rider:
                return outcome
            self._turns[thread] = group
        try:
            return await continuation(request, context)
        finally:
            with self._lock:
                self._give_back(thread)

    async def _outcome(self, rider: Rider) -> Any:
        """What becomes of a rider: itself when it has a turn to send alone with, a flight to send for all."""
        try:
            return await rider.context.runtime.wait(rider.turn, rider.context.remaining())
        except TimeoutError:
            with self._lock:
                came = rider.turn.done()
                if not came:
                    rider.gone = True
                    rider.group.remove(rider)
            if came:
                return rider.turn.result()
            raise too_late(rider) from None
        except BaseException:
            self._interrupted(rider)
            raise

    def _interrupted(self, rider: Rider) -> None:
        """Somebody else has to do what fell to a thread that was interrupted."""
        with self._lock:
            rider.gone = True
            rider.group.remove(rider)
            came = rider.turn.done()
        fallen = rider.turn.result() if came else None
        if fallen is rider:
            self._leave(rider.group)
        elif isinstance(fallen, Flight):
            self._hand_over(fallen)

    async def _lead(self, leader: Rider, flight: Flight) -> Any:
        try:
            outcomes = await self._send(flight)
        except BaseException:
            leader.gone = True
            self._hand_over(flight)
            raise
        mine: Any = None
        others = [rider for rider in flight.riders if rider is not leader]
        # The turn is given back after the callers have seen their answers: what they submit next can come
        # along.
        turns = (rider.turn for rider in others)
        waking = Waking(turns, partial(self._leave, leader.group, len(flight.riders)))
        try:
            with self._lock:
                for rider, outcome in zip(flight.riders, outcomes, strict=True):
                    settle(rider, outcome)
                    if rider is leader:
                        mine = outcome
                    elif not rider.gone:
                        rider.turn.set_result_of(outcome, waking)
        finally:
            # Who has nothing is gone, and wakes nobody; or this thread was interrupted before that: they
            # send what is theirs again, under the same key.
            with self._lock:
                for rider in others:
                    if rider.gone:
                        waking.is_awake(rider.turn)
                    elif not rider.turn.done():
                        rider.turn.set_result_of(ALONE, waking)
            flight.land()
            waking.go_on()
        return mine

    def _give_back(self, thread: int) -> None:
        group = self._turns.pop(thread, None)
        for riders in () if group is None else group.leave():
            self._grant(riders)

    def _leave(self, group: Group, items: int = 1) -> None:
        with self._lock:
            for riders in group.leave(items):
                self._grant(riders)

    def _hand_over(self, flight: Flight) -> None:
        """Let another rider send the batch."""
        group, items = flight.riders[0].group, len(flight.riders)
        with self._lock:
            riders = [rider for rider in flight.riders if not rider.gone]
            if riders:
                group.lose(items - len(riders))
                self._grant(riders)
        if not riders:
            self._leave(group, items)

    def _grant(self, riders: list[Rider]) -> None:
        if len(riders) == 1:
            riders[0].turn.set_result(riders[0])
        else:
            max(riders, key=deadline_of).turn.set_result(Flight(riders))
