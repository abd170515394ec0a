"""What do /metrics and the access log add to a call of the server?

The same app with neither, with metrics, and with metrics and the access log (to a file that is thrown away),
in turns, without a socket: health, which does nothing, and a submit to a ledger in memory. Medians over
rounds of the CPU time of a call, and its ratio to the call with neither. A scrape is measured by itself.
Run: python benchmarks/bench_metrics.py [rounds]
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from llm_cost_ops.server import asgi_app

CALLS = 300
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
KINDS: dict[str, dict[str, Any]] = {
    "neither": {},
    "metrics": {"metrics": True},
    "metrics, access log": {"metrics": True, "access_log": "json"},
}
RECORD = b'{"organization_id":"acme","provider":"openai","model_id":"gpt-4o","input_tokens":1000}'
SCOPE: dict[str, Any] = {
    "type": "http",
    "http_version": "1.1",
    "query_string": b"",
    "root_path": "",
    "client": ("127.0.0.1", 1),
    "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
}
ASKED = {
    "health": ("GET", "/health", b"", 200),
    "submit": ("POST", "/api/v1/usage", RECORD, 201),
    "scrape": ("GET", "/metrics", b"", 200),
}


async def call(app: Any, verb: str, path: str, body: bytes, expected: int) -> None:
    """One call of an app, as an ASGI server makes it."""
    scope = {**SCOPE, "method": verb, "path": path, "raw_path": path.encode()}
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    assert status == expected, status


async def cpu_of(app: Any, asked: tuple[str, str, bytes, int], count: int) -> float:
    """Microseconds of computing time for each of some calls."""
    began = time.process_time()
    for _ in range(count):
        await call(app, *asked)
    return (time.process_time() - began) / count * 1e6


async def measure() -> None:
    apps = {kind: asgi_app("sqlite://", require_keys=False, **options) for kind, options in KINDS.items()}
    for name in ("health", "submit"):
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(ROUNDS + 1):
            for kind, app in apps.items():
                taken[kind].append(await cpu_of(app, ASKED[name], CALLS))
        plain = statistics.median(taken["neither"][1:])
        for kind, values in taken.items():
            middle = statistics.median(values[1:])
            ratio = statistics.median(a / b for a, b in zip(values[1:], taken["neither"][1:], strict=True))
            print(f"{name:8}{kind:22}{middle:9.1f} us{middle - plain:+9.1f} us{ratio:7.2f} x")
    # Within five seconds of one before it a scrape asks the ledger for nothing.
    print(f"scrape  {'metrics':22}{await cpu_of(apps['metrics'], ASKED['scrape'], 50):9.1f} us")
    for app in apps.values():
        await app.aclose()


def main() -> None:
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        asyncio.run(measure())


if __name__ == "__main__":
    main()
