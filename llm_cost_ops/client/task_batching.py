"""Batching in asyncio: tasks that wait, in each event loop for itself."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Hashable, Iterable
from typing import Any
from weakref import WeakKeyDictionary, ref

from llm_cost_ops.client.batching import (
    ALONE,
    NEVER,
    Batching,
    Flight,
    Group,
    Groups,
    Rider,
    settle,
    size_of,
    too_late,
)
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import UnaryContinuation
from llm_cost_ops.rpc.runtime import AsyncRuntime

__all__ = ["TaskBatching"]

# A rider's outcome where its deadline passed.
_LATE = object()


class _Loop:
    """What an event loop gathers and sends, and one alarm for the deadlines of all that wait there.

    A timer for each would take a third of the time that a submit takes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.groups: Groups = {}
        self.flights: set[Flight] = set()
        # Weakly: the loop is the key under which this is kept.
        self._loop = ref(loop)
        self._rings_at = NEVER

    def watch(self, rider: Rider, deadline: float) -> None:
        """Have a rider's turn end as _LATE when its deadline passes before it is there."""
        rider.alarm = deadline
        if deadline < self._rings_at:
            self._set_alarm(deadline)

    def _set_alarm(self, moment: float) -> None:
        loop = self._loop()
        assert loop is not None
        self._rings_at = moment
        # Not every loop counts its time as deadlines do. The handle, which holds the loop, is not kept.
        loop.call_later(max(0.0, moment - AsyncRuntime.monotonic()), self._ring, moment)

    def _ring(self, moment: float) -> None:
        if moment != self._rings_at:
            return  # an earlier alarm was set since
        self._rings_at = following = NEVER
        now = AsyncRuntime.monotonic()
        found: list[Iterable[Rider]] = [*self.groups.values(), *(flight.riders for flight in self.flights)]
        for riders in found:
            for rider in riders:
                if rider.turn.done():
                    continue
                if rider.alarm <= now:
                    rider.turn.set_result(_LATE)
                else:
                    following = min(following, rider.alarm)
        if following < NEVER:
            self._set_alarm(following)


def _no_loop() -> None:
    pass


class TaskBatching(Batching):
    """Batching in asyncio: each event loop has its own, and a batch is a task of its own.

    A caller that is cancelled, or whose deadline passes, leaves the batch to the others; the last one that
    leaves ends it.
    """

    def forget(self) -> None:
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()
        self._last: tuple[Callable[[], object], _Loop | None] = (_no_loop, None)

    def _gathered_in(self, loop: asyncio.AbstractEventLoop) -> _Loop:
        gathered = self._loops.get(loop)
        if gathered is None:
            gathered = self._loops.setdefault(loop, _Loop(loop))
        # Mostly there is one. Kept as one object: loops of several threads read and replace it.
        self._last = (ref(loop), gathered)
        return gathered

    async def _submit(
        self, key: Hashable, continuation: UnaryContinuation[Any, Any], request: Any, context: CallContext
    ) -> Any:
        loop = asyncio.get_running_loop()
        last, gathered = self._last
        if gathered is None or last() is not loop:
            gathered = self._gathered_in(loop)
        group = self._of(gathered.groups, key)
        if not group.enter():
            turn: asyncio.Future[Any] = asyncio.Future(loop=loop)
            rider = Rider(group, continuation, request, context, turn, contextvars.copy_context())
            group.add(rider, size_of(request))
            try:
                # Here and not in a coroutine of its own: each one that waits costs the garbage collector.
                if context.deadline is None:
                    outcome = await rider.turn
                elif type(context.runtime) is AsyncRuntime:
                    gathered.watch(rider, context.deadline)
                    outcome = await rider.turn
                else:
                    outcome = await context.runtime.within(rider.turn, context.remaining())
                if outcome is _LATE:
                    raise TimeoutError
            except BaseException as error:
                self._forsake(rider)
                if isinstance(error, TimeoutError):
                    raise too_late(rider) from None
                raise
            if outcome is ALONE:
                return await continuation(request, context)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is not rider:
                return outcome
        try:
            return await continuation(request, context)
        finally:
            if len(group):
                loop.call_soon(self._leave, group)
            else:
                self._leave(group)

    def _forsake(self, rider: Rider) -> None:
        turn, flight = rider.turn, rider.flight
        if rider.group.remove(rider):
            return
        if flight is not None:
            flight.aboard -= 1
            if not flight.aboard and flight.task is not None:
                flight.task.cancel()
        elif turn.done() and not turn.cancelled() and turn.result() is rider:
            self._leave(rider.group)  # it had a turn, and did not see it any more

    def _leave(self, group: Group, items: int = 1) -> None:
        for riders in group.leave(items):
            if len(riders) > 1:
                self._take_off(riders)
            elif riders[0].turn.done():
                self._leave(group)
            else:
                riders[0].turn.set_result(riders[0])

    def _take_off(self, riders: list[Rider]) -> None:
        flight = Flight(riders)
        loop = asyncio.get_running_loop()
        flights = self._gathered_in(loop).flights
        flights.add(flight)
        task = flight.task = loop.create_task(self._fly(flight), context=riders[0].creator)
        group, items = riders[0].group, len(riders)

        # Not in the task, which may be cancelled before it begins; and after the callers have seen their
        # answers: what they submit next can come along.
        def landed(_: asyncio.Task[None]) -> None:
            flights.discard(flight)
            for rider in flight.riders:  # where it failed
                rider.turn.cancel()
            flight.land()
            self._leave(group, items)

        task.add_done_callback(landed)

    async def _fly(self, flight: Flight) -> None:
        outcomes = await self._send(flight)
        for rider, outcome in zip(flight.riders, outcomes, strict=True):
            if not rider.turn.done():
                settle(rider, outcome)
                rider.turn.set_result(outcome)
        # Now: kept until all have seen their answers, they would be work for the garbage collector, beside
        # what is submitted next.
        flight.land()
