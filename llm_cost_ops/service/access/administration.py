"""API keys as a caller may manage them: an admin those of its own organizations, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from llm_cost_ops.ledger import ApiKey, KeyStore
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service.access.keys import EVERY_ORGANIZATION, create_key, key_id_of, revoke_key
from llm_cost_ops.service.access.tenancy import Principal, Role, allowed_organizations

__all__ = ["create_managed_key", "managed_keys", "may_manage_keys", "revoke_managed_key"]


def may_manage_keys(principal: Principal | None) -> bool:
    """Whether a caller may look at keys: an admin, and whoever calls a server that asks for no keys."""
    return principal is None or principal.role >= Role.ADMIN


async def managed_keys(keys: KeyStore, context: CallContext) -> list[ApiKey]:
    """The keys whose organizations are all the caller's own, the oldest first; PERMISSION_DENIED."""
    _check(context)
    return [key for key in await keys.all(context) if _within(key.organizations, context)]


async def create_managed_key(
    keys: KeyStore,
    context: CallContext,
    *,
    organizations: Sequence[str],
    role: str,
    name: str = "",
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """As `create_key`, for the caller's own organizations only; PERMISSION_DENIED."""
    _check(context)
    wanted = None if EVERY_ORGANIZATION in organizations else tuple(organizations)
    if not _within(wanted, context):
        raise RpcError(
            StatusCode.PERMISSION_DENIED, "this API key may make keys for its own organizations only"
        )
    return await create_key(
        keys, context, organizations=organizations, role=role, name=name, expires_at=expires_at
    )


async def revoke_managed_key(keys: KeyStore, key_id: str, context: CallContext) -> ApiKey:
    """As `revoke_key`; a key of other organizations is NOT_FOUND, as one that does not exist."""
    _check(context)
    found = key_id_of(key_id)
    key = await keys.find(found, context) if found else None
    if key is None or not _within(key.organizations, context):
        raise RpcError(StatusCode.NOT_FOUND, f"there is no API key {found!r}")
    return await revoke_key(keys, found, context)


def _check(context: CallContext) -> None:
    if not may_manage_keys(context.principal):
        raise RpcError(StatusCode.PERMISSION_DENIED, "API keys need an API key with the role admin")


def _within(organizations: tuple[str, ...] | None, context: CallContext) -> bool:
    own = allowed_organizations(context)
    return own is None or (organizations is not None and own.issuperset(organizations))
