"""Recording beside the caller's work: nothing waits for the ledger, and nothing recorded is lost."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from llm_cost_ops import ClientConfig, CostOpsClient, RecorderConfig

with tempfile.TemporaryDirectory() as folder:
    config = ClientConfig(
        base_url=f"sqlite:///{Path(folder) / 'costs.db'}",
        organization_id="acme",
        # With a spool a record survives the end of the process once record() returned.
        recorder=RecorderConfig(spool=str(Path(folder) / "spool")),
    )
    with CostOpsClient(config=config) as client:

        def serve(user: str) -> None:
            """Answer a request; what it used is recorded on the way."""
            with client.attribute(user_id=user, labels={"feature": "chat"}):
                for _ in range(100):
                    client.usage.record(
                        provider="openai", model_id="gpt-4o", input_tokens=1000, output_tokens=500
                    )

        threads = [threading.Thread(target=serve, args=(f"user-{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report = client.flush(timeout=10)
        print(f"{report.delivered} delivered, {report.spooled} in the spool, {report.dropped} dropped")
        for group in client.costs.get(group_by="user").breakdown:
            print(f"{group.value}  {group.requests} calls  {group.cost} USD")
