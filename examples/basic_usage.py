"""Record calls, ask what they cost, page through them. Runs as it is, on an engine in a temporary folder."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from llm_cost_ops import CostOpsClient, UsageRecord


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'costs.db'}"
        with CostOpsClient(base_url=url) as client:
            run(client)


def run(client: CostOpsClient) -> None:
    # One call. Prices of many models come with the package.
    receipt = client.usage.submit(
        organization_id="acme",
        provider="openai",
        model_id="gpt-4o",
        input_tokens=1000,
        output_tokens=500,
        user_id="ada",
        metadata={"feature": "search"},
    )
    print(f"one call: {receipt.estimated_cost} {receipt.currency}")

    # A price of your own, and many calls at once: a bad record harms only itself.
    client.pricing.create(
        provider="acme-llm",
        model_id="small",
        effective_date=datetime(2026, 1, 1, tzinfo=UTC),
        input_price_per_1k=Decimal("0.10"),
        output_price_per_1k=Decimal("0.20"),
    )
    at = datetime(2026, 2, 1, tzinfo=UTC)
    good = [
        UsageRecord(
            organization_id="acme", provider="acme-llm", model_id="small", input_tokens=n, timestamp=at
        )
        for n in (100, 200, 300)
    ]
    bad = UsageRecord(organization_id="acme", provider="acme-llm", model_id="small", input_tokens=-1)
    batch = client.usage.submit_batch([*good, bad])
    print(f"batch: {batch.created} created, {batch.invalid} invalid")

    # What it all cost.
    summary = client.costs.get(organization_id="acme", group_by="provider")
    for group in summary.breakdown:
        print(f"{group.value}: {group.cost} {summary.currency} for {group.requests} calls")
    print(f"total: {summary.total_cost}")

    # Lists go on over all their pages.
    newest = client.usage.list(organization_id="acme", page_size=2)
    print(f"listed: {sum(1 for _ in newest)} records in {sum(1 for _ in newest.pages())} pages")


if __name__ == "__main__":
    main()
