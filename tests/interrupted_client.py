"""A client that is interrupted at each point where CPython interrupts, one after the other.

    python -m tests.interrupted_client URL CALL raise|NESTED

At a point either KeyboardInterrupt is raised, as Ctrl-C does, or another call is made, as by a signal handler
or a finalizer. After each, another thread makes every call; over a network, a query. It prints how many
points there were, and what the nested calls came to.
"""

from __future__ import annotations

import dis
import faulthandler
import sys
import threading
from collections import Counter
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any

from llm_cost_ops import (
    ClientConfig,
    ConnectionPoolConfig,
    CostOpsClient,
    CostOpsError,
    RecorderConfig,
    RetryConfig,
    UsageRecord,
)

# Behind these it looks whether a signal came; behind the call of a function in Python that is at its begin.
_NAMES = ("CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD", "RESUME")
_LOOKS = {dis.opmap[name] for name in _NAMES if name in dis.opmap}
_RESUME = dis.opmap["RESUME"]
_WHERE = ("llm_cost_ops", "threading.py", "concurrent/futures", "httpcore", "h11")
SECONDS = 10.0

FIELDS: dict[str, Any] = {"organization_id": "o", "provider": "openai", "model_id": "m", "input_tokens": 1}


class Interrupt:
    """Does `act` at point number `point` of what this thread runs in the package."""

    def __init__(self, point: int, act: Callable[[], object]) -> None:
        self._left = point
        self._act = act
        self._before: dict[int, int] = {}  # by frame, what it did last
        self._calling: set[int] = set()  # frames that called a function in Python
        self.place = ""

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        self._calling.add(id(frame.f_back))
        if not any(part in frame.f_code.co_filename for part in _WHERE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            which = id(frame)
            before, self._before[which] = self._before.get(which), frame.f_code.co_code[frame.f_lasti]
            if before in _LOOKS and (before == _RESUME or which not in self._calling):
                self._left -= 1
                if not self._left:
                    self.place = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                    self._act()
            self._calling.discard(which)
        return self._step


def run(
    point: int,
    call: Callable[[], object],
    act: Callable[[], object],
    alike: Callable[[], object] | None = None,
) -> str:
    """Where the point was; "" when there are fewer, and for point 0, which there is not.

    `alike` runs the same functions, where `call` does not do the same when it is made again.
    """
    if sys.version_info >= (3, 13) and point:
        # Opcodes of a function are traced from its next call on, until another thread was in it.
        run(0, alike or call, act)
    interrupt = Interrupt(point, act)
    # From Python 3.12 on opcodes are traced only where some frame asked for it before.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(interrupt)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return interrupt.place


def interrupted() -> None:
    sys.settrace(None)
    raise KeyboardInterrupt


def main(url: str, name: str, nested: str) -> None:
    faulthandler.dump_traceback_later(9 * SECONDS, exit=True)
    spool, url = url.split("|") if "|" in url else (None, url)
    config = ClientConfig(
        base_url=url,
        timeout=SECONDS,
        recorder=RecorderConfig(spool=spool),
        connection_pool=ConnectionPoolConfig(max_in_flight=1),
        retry=RetryConfig(max_retries=0),
    )
    client = CostOpsClient(config=config)
    outcomes: Counter[str] = Counter()
    recorded: list[str] = []
    numbers = count()

    def record() -> None:
        key = f"key {next(numbers)}"
        client.usage.record(**FIELDS, idempotency_key=key)
        recorded.append(key)

    calls: dict[str, Callable[[], object]] = {
        "submit": lambda: client.usage.submit(**FIELDS),
        "batch": lambda: client.usage.submit_batch([UsageRecord(**FIELDS)] * 2),
        "query": lambda: client.costs.get(organization_id="o"),
        "record": record,
    }

    def within() -> None:
        try:
            calls[nested]()
            outcomes["done"] += 1
        except CostOpsError as error:
            outcomes[error.message] += 1

    def all_calls() -> None:
        for call in calls.values() if "sqlite:" in url else ():  # what they share over a network are turns
            call()
        went_through.append(client.costs.get(organization_id="other").total_requests)

    went_through: list[int] = []
    client.usage.submit_batch([UsageRecord(**{**FIELDS, "organization_id": "other"})] * 3)
    all_calls()
    client.flush(SECONDS)
    point = 1
    while place := run(point, calls[name], interrupted if nested == "raise" else within):
        point += 1
        thread = threading.Thread(target=all_calls, daemon=True)
        thread.start()
        thread.join(SECONDS / 2)
        if thread.is_alive():
            faulthandler.dump_traceback()
            sys.exit(f"another thread waits, after an interrupt at {place}")
        if went_through != [3] * point:
            sys.exit(f"another thread's calls failed, after an interrupt at {place}")
    client.flush(SECONDS)
    listed = {usage.idempotency_key for usage in client.usage.list(organization_id="o")}
    sys.stdout.write(f"{point - 1} {dict(outcomes)} lost: {sorted(set(recorded) - listed)}\n")
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
