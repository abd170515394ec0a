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
    """Batching of threads: one of those that wait sends for all, the one with the latest deadline.

    An interrupt, such as KeyboardInterrupt, may come at any call that is made here. Whatever it left half
    done, those who waited send alone then, and who comes next begins anew.
    """

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._groups: Groups = {}
        self._waiting: dict[Rider, None] = {}  # nothing was brought to them yet
        self._inside: set[int] = set()  # the threads that are in the middle of a submit

    async def _submit(
        self, key: Hashable, continuation: UnaryContinuation[Any, Any], request: Any, context: CallContext
    ) -> Any:
        thread = threading.get_ident()
        if thread in self._inside:
            # From a signal handler, a finalizer or an interceptor: its thread may have a turn, or the lock.
            return await continuation(request, context)
        rider: Rider | None = None
        settled = False
        try:
            self._inside.add(thread)
            with self._lock:
                group = self._of(self._groups, key)
                if not group.enter():
                    rider = Rider(group, continuation, request, context, ThreadTurn())
                    self._waiting[rider] = None
                    group.add(rider, size_of(request))
            outcome = rider
            if rider is not None:
                outcome = await self._outcome(rider)
                if isinstance(outcome, Flight):
                    outcome = await self._lead(rider, outcome)
            if outcome is rider:
                try:
                    return await continuation(request, context)
                finally:
                    self._leave(group)
                    settled = True
            settled = True
            if outcome is ALONE:
                return await continuation(request, context)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        finally:
            try:
                if not settled:
                    self._begin_anew(rider)
            except BaseException:
                self._begin_anew(rider)  # which was interrupted in its turn
                raise
            finally:
                self._inside.discard(thread)

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
                    self._waiting.pop(rider, None)
            return rider.turn.result() if came else too_late(rider)

    async def _lead(self, leader: Rider, flight: Flight) -> Any:
        outcomes = await self._send(flight)
        mine: Any = None
        others = [rider for rider in flight.riders if rider is not leader]
        # The turn is given back after the callers have seen their answers: what they submit next can come
        # along.
        turns = (rider.turn for rider in others)
        flight.waking = waking = Waking(turns, partial(self._leave, leader.group, len(flight.riders)))
        with self._lock:
            for rider, outcome in zip(flight.riders, outcomes, strict=True):
                settle(rider, outcome)
                if rider is leader:
                    mine = outcome
                elif rider.gone:
                    waking.is_awake(rider.turn)  # and wakes nobody
                else:
                    rider.turn.set_result_of(outcome, waking)
        flight.land()
        waking.go_on()
        return mine

    def _begin_anew(self, interrupted: Rider | None) -> None:
        """Have those who wait send alone, with the same keys: some may have a turn, and nobody to tell them.

        Who is in a batch that another thread sends waits for that. May be called again.
        """
        flight = None
        with self._lock:
            self._groups = {}
            riders = list(self._waiting)
            if interrupted is not None:
                interrupted.gone = True
                if interrupted.turn.done() and isinstance(interrupted.turn.outcome, Flight):
                    flight = interrupted.turn.outcome
                    riders += flight.riders
            for rider in riders:
                if rider is not interrupted:
                    rider.turn.set_result(ALONE)
            self._waiting = {}
        if interrupted is not None:
            interrupted.turn.wake_next()
        if flight is not None and flight.waking is not None:
            flight.waking.go_on()

    def _leave(self, group: Group, items: int = 1) -> None:
        with self._lock:
            for riders in group.leave(items):
                if len(riders) == 1:
                    riders[0].turn.set_result(riders[0])
                else:
                    max(riders, key=deadline_of).turn.set_result(Flight(riders))
                for rider in riders:
                    self._waiting.pop(rider, None)
