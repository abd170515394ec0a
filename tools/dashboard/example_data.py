"""Fills a ledger with sixty days of a company that does not exist, the same for the same day and seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from llm_cost_ops import CostOpsClient
from llm_cost_ops.types import UsageRecord

__all__ = ["fill", "records"]

ORGANIZATION = "northwind"
DAYS = 62


class _Workload(NamedTuple):
    """What a project asks of a model: calls a day, tokens, how much a cache has, and how it grows."""

    project: str
    provider: str
    model: str
    calls: int
    tokens_in: int
    tokens_out: int
    cached: float
    growth: float
    tags: tuple[str, ...]
    first_day: int = 0
    last_day: int = DAYS


_WORKLOADS = (
    _Workload("support-chat", "openai", "gpt-4o", 150, 5200, 420, 0.55, 0.4, ("prod", "chat")),
    _Workload("support-chat", "openai", "gpt-4o-mini", 320, 2600, 260, 0.35, 0.6, ("prod", "chat")),
    _Workload("support-chat", "openai", "gpt-5", 70, 6400, 900, 0.5, 1.4, ("prod", "chat"), 24),
    _Workload("code-review", "anthropic", "claude-sonnet-4-5", 90, 18500, 1400, 0.72, 0.8, ("prod", "agent")),
    _Workload("code-review", "anthropic", "claude-opus-4-1", 9, 21000, 1900, 0.6, 0.1, ("prod", "agent")),
    _Workload("research", "anthropic", "claude-haiku-4-5", 160, 7400, 600, 0.3, 0.9, ("beta",), 14),
    _Workload("research", "google", "gemini-2.5-pro", 55, 16500, 1500, 0.2, 0.5, ("beta", "agent")),
    _Workload("search", "google", "gemini-2.5-flash", 420, 3100, 180, 0.1, 0.3, ("prod",)),
    _Workload("search", "openai", "text-embedding-3-small", 500, 900, 0, 0.0, 0.2, ("prod", "batch")),
    _Workload("contracts", "mistral", "mistral-large-latest", 40, 9800, 1100, 0.0, 0.2, ("prod",)),
    _Workload("experiments", "openai", "gpt-4.1", 30, 4200, 700, 0.1, -0.5, ("dev",), 0, 48),
    # No catalog knows this one: its calls are unpriced.
    _Workload("experiments", "together", "northwind-router-8b-v2", 24, 2100, 240, 0.0, 0.6, ("dev",), 40),
)
_USERS = "ada grace linus margaret ken barbara dennis radia edsger frances alan katherine".split()


def records(end: datetime, seed: int = 7, scale: float = 1.0) -> Iterator[UsageRecord]:
    """The records of the days before `end`, in no order."""
    chance = random.Random(seed)
    for back in range(DAYS):
        midnight = (end - timedelta(days=back)).replace(hour=0, minute=0, second=0, microsecond=0)
        day = DAYS - 1 - back
        for load in _WORKLOADS:
            if load.first_day <= day < load.last_day:
                yield from _day(load, midnight, day, end, chance, scale)


def _day(
    load: _Workload, midnight: datetime, day: int, end: datetime, chance: random.Random, scale: float
) -> Iterator[UsageRecord]:
    week = 0.35 if midnight.weekday() >= 5 else 1.0
    grown = 1 + load.growth * (day - DAYS / 2) / DAYS
    calls = round(load.calls * scale * week * grown * chance.uniform(0.8, 1.2))
    for _ in range(calls):
        # Most calls come in the afternoon, in UTC.
        hour = min(23.99, max(0.0, chance.gauss(14, 4)))
        moment = midnight + timedelta(hours=hour, microseconds=chance.randrange(1_000_000))
        if moment >= end:
            continue
        tokens_in = max(20, round(load.tokens_in * math.exp(chance.gauss(0, 0.45))))
        user = _USERS[min(len(_USERS) - 1, int(chance.expovariate(0.35)))]
        yield UsageRecord(
            organization_id=ORGANIZATION,
            provider=load.provider,
            model_id=load.model,
            project_id=load.project,
            user_id=f"{user}@northwind.example",
            tags=list(load.tags),
            labels={"environment": "production" if "prod" in load.tags else "development"},
            input_tokens=tokens_in,
            output_tokens=round(load.tokens_out * math.exp(chance.gauss(0, 0.5))),
            cached_tokens=round(tokens_in * min(0.95, load.cached * chance.uniform(0.6, 1.25))),
            timestamp=moment,
            latency_ms=round(400 + load.tokens_out * chance.uniform(6, 14)),
        )


def fill(url: str, end: datetime | None = None, scale: float = 1.0) -> int:
    """Record them all in the ledger at a URL; how many there are."""
    found = list(records(end or datetime.now(UTC), scale=scale))
    found.sort(key=lambda record: record.timestamp or datetime.min.replace(tzinfo=UTC))
    with CostOpsClient(base_url=url) as client:
        for first in range(0, len(found), 5000):
            client.usage.submit_batch(found[first : first + 5000])
    return len(found)
