"""A ledger with calls of two organizations and hostile names, keys for them, and a browser over ASGI."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from llm_cost_ops._gen.messages import BatchSubmitUsageRequest, UsageRecord
from llm_cost_ops._gen.methods import BATCH_SUBMIT_USAGE, GET_COST_SUMMARY
from llm_cost_ops.ledger import Ledger, open_ledger
from llm_cost_ops.rpc.context import CallContext, Metadata, drive
from llm_cost_ops.rpc.runtime import SyncRuntime
from llm_cost_ops.server import asgi_app
from llm_cost_ops.service import Service
from llm_cost_ops.service.access.keys import create_key

HOSTILE = "<script>alert(1)</script>"
FORMULA = '=HYPERLINK("https://x.example","a")'
MODELS = [
    ("openai", "gpt-4o", 3000),
    ("openai", "gpt-4o-mini", 2000),
    ("anthropic", "claude-sonnet-4-5", 9000),
    ("google", "gemini-2.5-pro", 4000),
    ("acme-labs", HOSTILE, 1000),
]


def context() -> CallContext:
    runtime = SyncRuntime()
    return CallContext(GET_COST_SUMMARY, runtime, Metadata(), runtime.monotonic() + 30)


def usage(now: datetime) -> list[UsageRecord]:
    found = []
    for number in range(240):
        provider, model, tokens = MODELS[number % len(MODELS)]
        found.append(
            UsageRecord(
                organization_id="acme" if number % 3 else "globex",
                provider=provider,
                model_id=model,
                project_id=f"project-{number % 4}",
                user_id=FORMULA if number % 10 == 0 else f"user-{number % 7}",
                tags=["chat", f"tag-{number % 3}", '"><img src=x onerror=alert(1)>'],
                input_tokens=tokens + number,
                output_tokens=200 + number,
                cached_tokens=tokens // 3,
                timestamp=now - timedelta(hours=number * 4, minutes=5),
            )
        )
    return found


def filled(url: str = "sqlite://") -> Ledger:
    """A ledger with those calls; the prices are of the catalog, which does not know one model."""
    ledger = open_ledger(url, group_commit=url != "sqlite://")
    service = Service(ledger)
    write = CallContext(BATCH_SUBMIT_USAGE, SyncRuntime(), Metadata(), None)
    request = BatchSubmitUsageRequest(records=usage(datetime.now(UTC)))
    results = drive(service.handler.answers[BATCH_SUBMIT_USAGE.path](request, write)).data
    assert results.created == len(request.records), results
    return ledger


def key_of(ledger: Ledger, *organizations: str, role: str = "reader", **options: Any) -> str:
    _, text = drive(create_key(ledger.keys, context(), organizations=organizations, role=role, **options))
    return text


def browser(ledger: Ledger, *, require_keys: bool = True, host: str = "localhost") -> httpx.AsyncClient:
    """A client that keeps cookies, over the app without a socket."""
    app = asgi_app(ledger, require_keys=require_keys, dashboard=True)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}")


async def sign_in(client: httpx.AsyncClient, key: str, **options: Any) -> httpx.Response:
    return await client.post("/dashboard/sign-in", data={"key": key}, **options)


def token_of(page: httpx.Response) -> str:
    """What the forms of a page carry."""
    found = re.search(r'name="token" value="([0-9a-f]{48})"', page.text)
    assert found is not None, page.text
    return found[1]


def total_of(page: httpx.Response) -> str:
    """The exact amount that a page shows as its total."""
    found = re.search(r'id="total"><data value="([^"]*)"', page.text)
    assert found is not None, page.text
    return found[1]
