"""How long does a price take, and how does that compare with the libraries that people use for it?

    python benchmarks/bench_pricing.py

Prints microseconds a call (the best of many rounds, CPU time of this process) and each library's
multiple of ours. The targets are those of the design; a shared machine may miss them by its noise.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import timeit
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

from llm_cost_ops._gen.messages import PriceTier, Rate, RateCard, UsageRecord
from llm_cost_ops.pricing.calculator import calculate_cost, cost_by, cost_of
from llm_cost_ops.pricing.pricebook import CompiledCard, PriceBook
from llm_cost_ops.rules.requests import check_usage

AT = datetime(2026, 5, 1, 12, tzinfo=UTC)
MODEL = "claude-sonnet-4-5"
PRICES = {
    "INPUT": "3",
    "CACHE_READ": "0.3",
    "CACHE_WRITE": "3.75",
    "CACHE_WRITE_EXTENDED": "6",
    "OUTPUT": "15",
}
COUNTS = {"input_tokens": 12_000, "output_tokens": 900, "cached_tokens": 8_000, "cache_write_tokens": 1_000}


def measure(call: Callable[[], object], rounds: int) -> float:
    """Microseconds a call: the best of `rounds`."""
    timer = timeit.Timer(call, timer=time.process_time)
    number = max(10, int(0.01 / max(timer.timeit(10) / 10, 1e-7)))
    return min(timer.repeat(rounds, number)) / number * 1e6


def ours() -> dict[str, tuple[Callable[[], object], float | None]]:
    """What to time of this package, with its target in microseconds."""
    card = RateCard(
        id="anthropic/claude-sonnet-4-5",
        provider="anthropic",
        model_id=MODEL,
        currency="USD",
        rates=[Rate(meter=meter, price=Decimal(price), per=1_000_000) for meter, price in PRICES.items()],
    )
    tiered = RateCard(
        provider="anthropic",
        model_id=MODEL,
        rates=[
            Rate(
                meter=rate.meter,
                price=rate.price,
                per=rate.per,
                tiers=[PriceTier(above=200_000, price=rate.price * 2)],
            )
            for rate in card.rates
        ],
    )
    record = UsageRecord(
        organization_id="acme",
        provider="anthropic",
        model_id=MODEL,
        timestamp=AT,
        reasoning_tokens=400,
        total_tokens=12_900,
        **COUNTS,
    )
    compiled, stepped, book = CompiledCard(card), CompiledCard(tiered), PriceBook(cards=[card])
    assert len(cost_of(compiled, record).lines) == 5
    return {
        "compiled total, five meters": (lambda: compiled.total(record), 1.0),
        "compiled total, tiered": (lambda: stepped.total(record), 1.0),
        "full record, card compiled": (lambda: cost_of(compiled, record), 6.0),
        "calculate_cost(record, card)": (lambda: calculate_cost(record, card), 6.0),
        "PriceBook.price, warm": (lambda: book.price(record), 2.0),
        "cost_by(book, record), warm": (lambda: cost_by(book, record), None),
        "check_usage": (lambda: check_usage(record, "", [], now=AT), 0.7),
        "CompiledCard": (lambda: CompiledCard(card), None),
    }


def theirs() -> dict[str, Callable[[], object]]:
    """The same price by other libraries, those that are installed."""
    found: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("genai_prices") is not None:
        import genai_prices

        usage = genai_prices.Usage(
            input_tokens=12_000, output_tokens=900, cache_read_tokens=8_000, cache_write_tokens=1_000
        )
        found["genai-prices"] = lambda: genai_prices.calc_price(
            usage, MODEL, provider_id="anthropic", genai_request_timestamp=AT
        )
    if importlib.util.find_spec("litellm") is not None:
        import litellm

        found["litellm"] = lambda: litellm.cost_per_token(
            model=MODEL,
            prompt_tokens=12_000,
            completion_tokens=900,
            cache_read_input_tokens=8_000,
            cache_creation_input_tokens=1_000,
        )
    return found


def main() -> None:
    """Time everything, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="rounds to take the best of")
    rounds = parser.parse_args().rounds
    results = {}
    print(f"{'':34}{'µs':>9}{'target':>9}")
    for name, (call, target) in ours().items():
        results[name] = measure(call, rounds)
        print(f"{name:34}{results[name]:9.2f}{'' if target is None else f'{target:.1f}':>9}")
    others = theirs()
    for name, call in others.items():
        taken = measure(call, rounds)
        print(f"{name:34}{taken:9.2f}")
        for mine in ("compiled total, five meters", "PriceBook.price, warm", "calculate_cost(record, card)"):
            print(f"{'':4}{taken / results[mine]:8.1f} x {mine}")
    for missing in sorted({"genai-prices", "litellm"} - set(others)):
        print(f"{missing}: not installed")


if __name__ == "__main__":
    main()
