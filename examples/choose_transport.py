"""One URL chooses where the engine runs; the code stays the same. Runs as it is, on two of the three.

    python examples/choose_transport.py                                     in this process, in memory
    python examples/choose_transport.py sqlite:///costs.db                  in this process, on a file
    python examples/choose_transport.py http://127.0.0.1:8080               HTTP/JSON
    python examples/choose_transport.py grpc://127.0.0.1:50051              gRPC (extra [grpc])

A deployment sets LLM_COST_OPS_BASE_URL and LLM_COST_OPS_API_KEY instead of an argument.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from llm_cost_ops import ClientConfig, ConnectionPoolConfig, CostOpsClient


def record(where: str, config: ClientConfig) -> None:
    with CostOpsClient(config=config) as client:
        client.usage.submit(
            organization_id="acme", provider="openai", model_id="gpt-4o-mini", input_tokens=2_000_000
        )
        print(f"{where}: {client.health().status}, {client.costs.get().total_cost} USD")


def main() -> None:
    if len(sys.argv) > 1:
        record(sys.argv[1], ClientConfig.from_env(base_url=sys.argv[1]))
        return
    # In memory: for tests, and to try things.
    record("in memory", ClientConfig(base_url="sqlite://"))
    # On a file that several processes may share. "process" is faster: it survives a crash of the
    # process, but a power cut may take the last submits.
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'costs.db'}"
        record("on a file", ClientConfig(base_url=url, durability="process"))
    # Settings of the network transports are there from the start, and nothing connects before a call.
    remote = ClientConfig(
        base_url="https://costs.example.com",
        api_key="a-key",
        timeout=5,
        connection_pool=ConnectionPoolConfig(max_connections=20),
    )
    print(CostOpsClient(config=remote))


if __name__ == "__main__":
    main()
