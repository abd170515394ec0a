"""A process that records until it is killed: `python -m tests.faults.recording_client URL SPOOL LOG COLOUR`.

It writes to LOG `+NUMBER` before each record(), and `=NUMBER` once that returned.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, CostOpsClient, RecorderConfig

__all__ = ["ORGANIZATION"]

ORGANIZATION = "chaos"


def main() -> None:
    url, spool, log, colour = sys.argv[1:]
    config = ClientConfig(base_url=url, organization_id=ORGANIZATION, recorder=RecorderConfig(spool=spool))
    client = (CostOpsClient if colour == "sync" else AsyncCostOpsClient)(config=config)
    told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def one(number: int) -> None:
        name = f"{os.getpid()}-{number}"
        os.write(told, f"+{name}\n".encode())
        client.usage.record(provider="openai", model_id="gpt-4o", input_tokens=1, session_id=name)
        os.write(told, f"={name}\n".encode())

    async def without_end() -> None:
        for number in itertools.count():
            one(number)
            await asyncio.sleep(0.002)

    if colour == "async":
        asyncio.run(without_end())
    for number in itertools.count():
        one(number)
        time.sleep(0.002)


if __name__ == "__main__":
    main()
