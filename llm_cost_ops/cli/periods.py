"""Words for the ends of a period, such as `yesterday`, `7d` and `2026-01`, as dates and times for queries."""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import UTC, date, datetime, timedelta

__all__ = ["PERIOD_WORDS", "period_end", "period_start"]

PERIOD_WORDS = ("today", "yesterday", "this-week", "last-week", "this-month", "last-month", "this-year")
"""A week begins on Monday."""

# At most 9999 weeks, so that no date is before the year 1.
_AGO = re.compile(r"([0-9]{1,4})([hdw])", re.ASCII)
_MONTH = re.compile(r"([1-9][0-9]{3})-(0[1-9]|1[0-2])", re.ASCII)


def period_start(text: str, time_zone: str, now: datetime) -> str:
    """Where a period begins: the first day of the word, in the zone; hours are counted back from `now`.

    Any other text comes back as it is. Raises INVALID_ARGUMENT for a zone that is none.
    """
    return _end_of(text, time_zone, now, last=False)


def period_end(text: str, time_zone: str, now: datetime) -> str:
    """As `period_start`, but the last day of the word, which queries take through its end."""
    return _end_of(text, time_zone, now, last=True)


def _end_of(text: str, time_zone: str, now: datetime, *, last: bool) -> str:
    if month := _MONTH.fullmatch(text):
        return _month_of(date(int(month[1]), int(month[2]), 1))[last].isoformat()
    ago = _AGO.fullmatch(text)
    if text not in PERIOD_WORDS and ago is None:
        return text
    # The parser is made for every command, also for those that ask nothing.
    from llm_cost_ops.rules.times import zone_of

    today = now.astimezone(zone_of(time_zone)).date()
    if ago is None:
        return _days(text, today)[last].isoformat()
    count, unit = int(ago[1]), ago[2]
    if unit == "h":
        return f"{(now - timedelta(hours=count)).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return (today - timedelta(days=count * (7 if unit == "w" else 1))).isoformat()


def _days(word: str, today: date) -> tuple[date, date]:
    """The first and the last day that a word names."""
    monday = today - timedelta(days=today.weekday())
    one = timedelta(days=1)
    match word:
        case "today":
            return today, today
        case "yesterday":
            return today - one, today - one
        case "this-week":
            return monday, monday + 6 * one
        case "last-week":
            return monday - 7 * one, monday - one
        case "this-month":
            return _month_of(today)
        case "last-month":
            return _month_of(today.replace(day=1) - one)
    return today.replace(month=1, day=1), today.replace(month=12, day=31)


def _month_of(day: date) -> tuple[date, date]:
    return day.replace(day=1), day.replace(day=monthrange(day.year, day.month)[1])
