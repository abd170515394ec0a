"""API keys: how they are made, what is kept of them, and whose call a key makes it.

A key reads `lco_<id>_<secret>`. The id is public: lists, logs and people name the key by it. The secret has
256 random bits and is shown once. Kept is a hash of it, keyed with random bytes that belong to one database:
whoever reads the table can't call the server with what is in it, can't tell whether a key that turned up
elsewhere is one of this database, and can't move a row that answers to a key of theirs into another database.
The keying bytes lie in the same file, so that against the thief of the whole file only the 256 bits protect:
they can't be guessed.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b

from llm_cost_ops.ledger import ApiKey, KeyStore
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError, StatusCode, invalid_argument
from llm_cost_ops.service.access.tenancy import Principal, Role, actor_of

__all__ = [
    "EVERY_ORGANIZATION",
    "create_key",
    "key_id_of",
    "principal_of",
    "principal_of_id",
    "revoke_key",
]

EVERY_ORGANIZATION = "*"

_FORM = re.compile(r"lco_([a-z2-7]{8})_([a-z2-7]{52})")
_ID = re.compile(r"(?:lco_)?([a-z2-7]{8})(?:_.*)?", re.DOTALL)
_MAX_NAME = 100
# Compared with where there is no key, so that an unknown id takes as long as a wrong secret.
_NOBODY = bytes(32)


async def create_key(
    keys: KeyStore,
    context: CallContext,
    *,
    organizations: Sequence[str],
    role: str = "writer",
    name: str = "",
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key and keep its hash; the text is given here and never again.

    Organizations that hold "*" mean all of them, those to come included. INVALID_ARGUMENT for what can't be.
    """
    now = context.now()
    _check(organizations, role, name)
    if expires_at is not None and expires_at <= now:
        raise invalid_argument("expires", "must lie in the future")
    everything = EVERY_ORGANIZATION in organizations
    secret = await keys.secret(context)
    while True:
        key_id, token = _random_text(5), _random_text(32)
        key = ApiKey(
            id=key_id,
            hash=_hash(secret, key_id, token),
            name=name,
            role=role,
            organizations=None if everything else tuple(sorted(set(organizations))),
            created_at=now,
            expires_at=expires_at,
        )
        try:
            await keys.add(key, context, actor=actor_of(context))
        except RpcError as error:
            if error.code is not StatusCode.ALREADY_EXISTS:
                raise
        else:
            return key, f"lco_{key_id}_{token}"


async def revoke_key(keys: KeyStore, key_id: str, context: CallContext) -> ApiKey:
    """Revoke a key for ever; NOT_FOUND when there is none."""
    found = key_id_of(key_id)
    now = context.now()
    key = await keys.revoke(found, now, context, actor=actor_of(context)) if found else None
    if key is None:
        what = f"there is no API key {found!r}" if found else "an API key's id has 8 letters and digits"
        raise RpcError(StatusCode.NOT_FOUND, what)
    return key


async def principal_of(keys: KeyStore, text: str, context: CallContext) -> Principal | None:
    """Who a key stands for, by what is kept at this moment; None for one that is not in force."""
    form = _FORM.fullmatch(text)
    key = await keys.find(form[1], context) if form else None
    secret = _NOBODY if key is None else await keys.secret(context)
    given = _hash(secret, *form.groups()) if form else _NOBODY
    if not hmac.compare_digest(given, key.hash if key is not None else _NOBODY) or key is None:
        return None
    return _principal(key, context)


async def principal_of_id(keys: KeyStore, key_id: str, context: CallContext) -> Principal | None:
    """Who a key stands for, by its id: only for a caller that has shown the key before, as a session has."""
    key = await keys.find(key_id, context)
    return None if key is None else _principal(key, context)


def _principal(key: ApiKey, context: CallContext) -> Principal | None:
    ends = None if key.expires_at is None else key.expires_at.timestamp()
    if key.revoked_at is not None or (ends is not None and ends <= context.runtime.now()):
        return None
    organizations = None if key.organizations is None else frozenset(key.organizations)
    return Principal(key_id=key.id, role=Role[key.role.upper()], organizations=organizations, expires_at=ends)


def key_id_of(text: str) -> str:
    """The id in an id, with or without "lco_", or in a whole key; "" when there is none."""
    match = _ID.fullmatch(text.strip())
    return match[1] if match else ""


def _check(organizations: Sequence[str], role: str, name: str) -> None:
    if not organizations:
        raise invalid_argument("organization", "must name at least one organization, or '*' for all of them")
    for organization in organizations:
        if not 1 <= len(organization) <= 100 or not organization.isprintable():
            raise invalid_argument("organization", "must have 1 to 100 printable characters")
    if role.upper() not in Role.__members__:
        raise invalid_argument("role", f"must be metrics, reader, writer or admin, not {role[:32]!r}")
    if role.upper() == Role.METRICS.name and EVERY_ORGANIZATION not in organizations:
        raise invalid_argument("organization", "must be '*' for the role metrics: figures are of the server")
    if len(name) > _MAX_NAME or not name.isprintable():
        raise invalid_argument("name", f"must have at most {_MAX_NAME} printable characters")


def _random_text(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode().rstrip("=").lower()


def _hash(secret: bytes, key_id: str, token: str) -> bytes:
    return blake2b(f"{key_id}_{token}".encode(), key=secret, digest_size=32, person=b"lco api key").digest()
