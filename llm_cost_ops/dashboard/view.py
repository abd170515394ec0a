"""What a page shows, as its address says it: the period, the groups, the filters, the zone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import msgspec
from msgspec.structs import replace

from llm_cost_ops.rpc.status import RpcError, invalid_argument
from llm_cost_ops.rules.requests import EARLIEST
from llm_cost_ops.rules.times import bucket_start, parse_interval, zone_of

__all__ = ["DIMENSIONS", "FILTERS", "INTERVALS", "PERIODS", "Span", "View"]

PERIODS = {
    "24h": "24 hours",
    "7d": "7 days",
    "30d": "30 days",
    "90d": "90 days",
    "month": "This month",
    "last-month": "Last month",
}
DIMENSIONS = {
    "provider": "Provider",
    "model": "Model",
    "project": "Project",
    "user": "User",
    "tag": "Tag",
    "organization": "Organization",
}
INTERVALS = ("hour", "day", "week", "month")

# Each filter in an address, and its field in a request.
FILTERS = {
    "organization": "organization_id",
    "provider": "provider",
    "model": "model_id",
    "project": "project_id",
    "user": "user_id",
    "tag": "tag",
    "status": "status",
}
_DAYS = {"7d": 7, "30d": 30, "90d": 90}

# A stack of more columns than these is neither read nor sent quickly.
_MAX_BUCKETS = {"hour": 200, "day": 400, "week": 400, "month": 400}
_WIDTHS = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(days=7),
    "month": timedelta(days=30),
}


class Span(NamedTuple):
    """A period: `start` is in it and `end` not. `label` says which."""

    start: datetime
    end: datetime
    label: str

    def before(self) -> Span:
        """The period of the same length that ends where this one begins."""
        start = _earlier(self.start, self.end - self.start)
        return Span(start, self.start, "the same time before")


def _earlier(moment: datetime, length: timedelta) -> datetime:
    """So much before a moment, but not before the first records that there can be."""
    return moment - min(length, max(moment - EARLIEST, timedelta(0)))


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a page. Everything that is not the default stands in the address.

    `start` and `end` are dates in the reader's zone and take the place of `period`. `interval` "" takes the
    one that suits the period. `time_zone` "" is UTC.
    """

    period: str = "30d"
    start: str = ""
    end: str = ""
    interval: str = ""
    by: str = "model"
    currency: str = ""
    time_zone: str = ""
    filters: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, query: Sequence[tuple[str, str]]) -> View:
        """The view that an address asks for; what is not a part of views is passed over.

        Raises INVALID_ARGUMENT. A zone that is not known is UTC, as browsers know zones that we do not.
        """
        values = {name: value.strip() for name, value in query if value.strip()}
        zone = values.get("tz", "")
        view = cls(
            period=values.get("period", "30d"),
            start=values.get("start", ""),
            end=values.get("end", ""),
            interval=values.get("interval", ""),
            by=values.get("by", "model"),
            currency=values.get("currency", "").upper(),
            time_zone=zone if _is_zone(zone) else "",
            filters=tuple(dict.fromkeys((name, value) for name, value in query if name in FILTERS and value)),
        )
        _check("period", view.period, PERIODS)
        _check("by", view.by, DIMENSIONS)
        _check("interval", view.interval, ("", *INTERVALS))
        parse_interval(view.start, view.end, view.time_zone, fields=("start", "end"))
        return view

    def url(self, path: str, **changes: object) -> str:
        """The address of a page with this view, or with one that differs in `changes`."""
        view = replace(self, **changes) if changes else self
        named = {"period": "30d", "start": "", "end": "", "interval": "", "by": "model", "currency": ""}
        pairs = [(name, getattr(view, name)) for name, usual in named.items() if getattr(view, name) != usual]
        if view.start or view.end:
            pairs = [pair for pair in pairs if pair[0] != "period"]
        if view.time_zone:
            pairs.append(("tz", view.time_zone))
        pairs += view.filters
        return f"{path}?{urlencode(pairs)}" if pairs else path

    def with_filter(self, name: str, value: str) -> View:
        """The view of what also has this value."""
        return replace(self, filters=tuple(dict.fromkeys((*self.filters, (name, value)))))

    def without_filter(self, name: str, value: str) -> View:
        """The view without one of its filters."""
        return replace(self, filters=tuple(pair for pair in self.filters if pair != (name, value)))

    @property
    def zone(self) -> ZoneInfo:
        """The reader's zone."""
        return zone_of(self.time_zone)

    def span(self, now: datetime) -> Span:
        """The period in full. It ends with the second after `now`, unless it is asked for by date."""
        if self.start or self.end:
            start, end = parse_interval(self.start, self.end, self.time_zone, fields=("start", "end"))
            end = end or now
            start = start or _earlier(end, timedelta(days=30))
            label = f"{self._day(start)} to {self._day(end - timedelta(microseconds=1))}"
            return Span(start, max(end, start), label)
        # What was recorded a moment ago is in it, and parts of a second are not worth a longer query.
        now = now.replace(microsecond=0) + timedelta(seconds=1)
        if self.period == "24h":
            return Span(bucket_start(now - timedelta(hours=23), "hour", self.zone), now, "the last 24 hours")
        if self.period in _DAYS:
            local = now.astimezone(self.zone)
            first = (local - timedelta(days=_DAYS[self.period] - 1)).replace(hour=12)
            start = bucket_start(first.astimezone(UTC), "day", self.zone)
            return Span(start, now, f"the last {PERIODS[self.period]}")
        month = bucket_start(now, "month", self.zone)
        if self.period == "month":
            return Span(month, now, f"{month.astimezone(self.zone):%B %Y} so far")
        start = bucket_start(month - timedelta(hours=36), "month", self.zone)
        return Span(start, month, f"{start.astimezone(self.zone):%B %Y}")

    def interval_of(self, span: Span) -> str:
        """The length of a bucket: the one asked for, or one that is coarser where that gives too many."""
        length = span.end - span.start
        usual = "hour" if length <= timedelta(days=2) else "day" if length <= timedelta(days=100) else "week"
        asked = self.interval or usual
        coarser = INTERVALS[INTERVALS.index(asked) :]
        return next((name for name in coarser if length / _WIDTHS[name] <= _MAX_BUCKETS[name]), "month")

    def filter_fields(self, span: Span) -> dict[str, Any]:
        """The fields of a request's filter."""
        fields: dict[str, Any] = {
            "start_date": _moment(span.start),
            "end_date": _moment(span.end),
            "time_zone": self.time_zone,
        }
        for name, field in FILTERS.items():
            values = [value for key, value in self.filters if key == name]
            if values:
                fields[field] = values
        return fields

    def _day(self, moment: datetime) -> str:
        return f"{moment.astimezone(self.zone):%-d %B %Y}"


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _is_zone(name: str) -> bool:
    try:
        zone_of(name)
    except RpcError:
        return False
    return True


def _check(field: str, value: str, known: Sequence[str] | dict[str, str]) -> None:
    if value not in known:
        raise invalid_argument(field, f"must be one of {', '.join(filter(None, known))}, not {value[:64]!r}")
