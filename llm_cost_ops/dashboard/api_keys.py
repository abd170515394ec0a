"""The page about API keys, for admins."""

from __future__ import annotations

from datetime import datetime

from llm_cost_ops.dashboard.exchange import Answer, redirect
from llm_cost_ops.dashboard.page import Page
from llm_cost_ops.ledger import ApiKey
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.rules.times import parse_end
from llm_cost_ops.service.access.administration import create_managed_key, managed_keys, revoke_managed_key

__all__ = ["add_key", "keys_page", "revoke"]


async def keys_page(page: Page) -> Answer:
    """The keys that the reader may manage."""
    return await _shown(page)


async def add_key(page: Page) -> Answer:
    """Make a key and show it, this once; or the form again, with what is wrong."""
    form = page.form
    context = page.key_context()
    organizations = [name for each in form.get("organizations", "").split(",") if (name := each.strip())]
    try:
        expires = form.get("expires", "")
        _, text = await create_managed_key(
            page.keys,
            context,
            organizations=organizations,
            role=form.get("role", "reader"),
            name=form.get("name", ""),
            expires_at=parse_end(expires, page.view.time_zone, field="expires") if expires else None,
        )
    except RpcError as error:
        if error.code not in (StatusCode.INVALID_ARGUMENT, StatusCode.PERMISSION_DENIED):
            raise
        return await _shown(page, violations=error.violations or (Violation("", error.message),))
    return await _shown(page, made=text)


async def revoke(page: Page) -> Answer:
    """Revoke a key for ever."""
    await revoke_managed_key(page.keys, page.form.get("id", ""), page.key_context())
    return redirect(page.link("/dashboard/keys"))


async def _shown(page: Page, made: str = "", violations: tuple[Violation, ...] = ()) -> Answer:
    # The first key of all ends the time in which no key was asked for, so that nobody could list them now.
    first = bool(made) and page.principal is None
    listed = await managed_keys(page.keys, page.key_context())
    return page.render(
        "keys.html",
        "API keys",
        status=400 if violations else 200,
        keys=[(key, _state(key, page.now)) for key in listed],
        own=page.principal.key_id if page.principal else "",
        made=made,
        first=first,
        violations=violations,
        values={name: page.form.get(name, "") for name in ("organizations", "role", "name", "expires")},
    )


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "in force"
