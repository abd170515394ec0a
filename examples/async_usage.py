"""The async client: many calls at once, and `async for`. Runs as it is."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from llm_cost_ops import AsyncCostOpsClient


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncCostOpsClient(base_url=f"sqlite:///{Path(folder) / 'costs.db'}") as client:
            # Concurrent submits share transactions: each is on disk once its await ends.
            receipts = await asyncio.gather(
                *(
                    client.usage.submit(
                        organization_id="acme",
                        provider="anthropic",
                        model_id="claude-opus-4-5",
                        input_tokens=1000 + n,
                        output_tokens=200,
                        idempotency_key=f"job-{n}",
                    )
                    for n in range(100)
                )
            )
            print(f"submitted: {len(receipts)}")

            # The same key again counts once.
            again = await client.usage.submit(
                organization_id="acme",
                provider="anthropic",
                model_id="claude-opus-4-5",
                input_tokens=1000,
                output_tokens=200,
                idempotency_key="job-0",
            )
            print(f"duplicate: {again.duplicate}")

            tokens = 0
            async for record in client.usage.list(organization_id="acme", page_size=30):
                tokens += record.input_tokens
            print(f"input tokens: {tokens}")

            summary = await client.costs.get(organization_id="acme", timeout=5)
            print(f"total: {summary.total_cost} {summary.currency}")


if __name__ == "__main__":
    asyncio.run(main())
