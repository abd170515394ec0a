"""What stops a statement that runs for long: a deadline, or an interrupt."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

__all__ = ["stopping"]

# Steps of SQLite's machine between two looks at the clock.
_STEPS = 10_000


@contextmanager
def stopping(connection: sqlite3.Connection, is_late: Callable[[], bool] | None) -> Iterator[None]:
    """Stop the statements of a connection once `is_late()`, if that is given, or by an interrupt.

    While a statement runs in the main thread the only Python there is what SQLite calls between its steps: a
    KeyboardInterrupt, or what a signal's handler raises, comes in that. sqlite3 drops it, and says that the
    statement was interrupted, as it does of a deadline. Here it is raised.
    """
    raised: list[BaseException] = []
    looks = _looks(is_late or _never, raised)
    next(looks)
    try:
        connection.set_progress_handler(looks.__next__, _STEPS)
        yield
    except sqlite3.Error:
        if not raised:
            raise
    finally:
        connection.set_progress_handler(None, 0)
    if raised:
        raise raised[0]


def _never() -> bool:
    return False


def _looks(is_late: Callable[[], bool], raised: list[BaseException]) -> Generator[bool, None, None]:
    """Whether to stop, each time. An interrupt may come at a function's first step, before any `try`."""
    stop = False
    while True:
        try:
            while True:
                yield stop
                stop = is_late()
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001  # raised by `stopping`
            raised.append(error)
            stop = True
