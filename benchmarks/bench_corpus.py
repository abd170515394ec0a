"""How many of the recorded answers in tests/golden come to the right cost, here and with others.

Run: python benchmarks/bench_corpus.py. The answers are those of provider_responses.jsonl.gz whose cost
is settled, streams left out: the others read single responses. A cost is right when it is within
10^-9 of the recorded one; none is "no answer", and a wrong one that says so itself (estimated, partial)
is "said to be unsure". Each library is given the provider and, where it takes it, the model; genai-prices
also the API flavor, the first of its own that fits. The recorded costs were checked against genai-prices,
which is why it does well where it gives an answer. litellm needs to be installed.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from llm_cost_ops import CostOpsClient, usage_from_response

CORPUS = Path(__file__).parents[1] / "tests" / "golden" / "provider_responses.jsonl.gz"
# litellm's names of providers, where they are others.
LITELLM_NAMES = {
    "aws": "bedrock",
    "google": "gemini",
    "moonshotai": "moonshot",
    "together": "together_ai",
    "voyageai": "voyage",
    "x-ai": "xai",
}
NEAR = Decimal("1e-9")
RIGHT, UNSURE, WRONG, NONE = "right", "said to be unsure", "wrong", "no answer"

Line = dict[str, Any]
Answer = tuple[Decimal | None, bool]
"""A cost, and whether it is given as a sure one."""


def lines() -> Iterator[Line]:
    """The single responses whose cost is settled."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if "body" in line and isinstance(line.get("total_cost"), str):
                yield line


def ours(client: CostOpsClient) -> Callable[[Line], Answer]:
    """Reads and prices a response by this package."""

    def answer(line: Line) -> Answer:
        given = {key: line[key] for key in ("provider", "model_id") if line.get(key)}
        record = usage_from_response(line["body"], **given)
        record.organization_id = "bench"
        if record.timestamp is None:
            record.timestamp = datetime.fromisoformat(line["at"])
        cost = client.costs.estimate(record)
        return cost.total_cost, cost.status.value in ("priced", "reported")

    return answer


def of_genai_prices() -> Callable[[Line], Answer]:
    """Reads and prices a response by genai-prices."""
    from genai_prices import calc_price, extract_usage
    from genai_prices.data import providers

    flavors = {
        provider.id: [extractor.api_flavor for extractor in provider.extractors or ()]
        for provider in providers
    }

    def answer(line: Line) -> Answer:
        when = datetime.fromisoformat(line["at"])
        for flavor in flavors.get(line["provider"], ()):
            try:
                found = extract_usage(line["body"], provider_id=line["provider"], api_flavor=flavor)
            except (LookupError, ValueError, TypeError):
                continue
            model = line.get("model_id") or line["body"].get("model")
            if found.model is not None:
                return found.calc_price(genai_request_timestamp=when).total_price, True
            if model:
                price = calc_price(
                    found.usage, model, provider_id=line["provider"], genai_request_timestamp=when
                )
                return price.total_price, True
        return None, False

    return answer


def of_litellm() -> Callable[[Line], Answer]:
    """Prices a response by litellm, which takes the body and the model."""
    # Its own prices, not those of today from the network.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.suppress_debug_info = True

    def answer(line: Line) -> Answer:
        model = line.get("model_id") or line["body"].get("model")
        provider = LITELLM_NAMES.get(line["provider"], line["provider"]) or None
        cost = litellm.completion_cost(
            completion_response=line["body"], model=model, custom_llm_provider=provider
        )
        return Decimal(str(cost)), True

    return answer


def count(answer: Callable[[Line], Answer], corpus: list[Line]) -> Counter[str]:
    """How many answers are right, unsure, wrong or missing."""
    found: Counter[str] = Counter()
    for line in corpus:
        try:
            cost, sure = answer(line)
        except Exception:
            cost, sure = None, False
        if cost is None:
            found[NONE] += 1
        elif abs(cost - Decimal(line["total_cost"])) <= NEAR:
            found[RIGHT] += 1
        else:
            found[WRONG if sure else UNSURE] += 1
    return found


def main() -> None:
    """Price the corpus by every library that is installed, and print a table."""
    corpus = list(lines())
    print(f"{len(corpus)} recorded responses")
    print(f"{'':16}{RIGHT:>8}{UNSURE:>20}{WRONG:>8}{NONE:>12}{'seconds':>10}")
    with CostOpsClient(base_url="sqlite://") as client:
        libraries = {"llm-cost-ops": lambda: ours(client)}
        libraries |= {"genai-prices": of_genai_prices, "litellm": of_litellm}
        for name, make in libraries.items():
            if importlib.util.find_spec(name.replace("-", "_")) is None:
                print(f"{name}: not installed")
                continue
            answer = make()
            start = time.perf_counter()
            found = count(answer, corpus)
            taken = time.perf_counter() - start
            cells = f"{found[RIGHT]:8}{found[UNSURE]:20}{found[WRONG]:8}{found[NONE]:12}"
            print(f"{name:16}{cells}{taken:10.2f}")


if __name__ == "__main__":
    main()
