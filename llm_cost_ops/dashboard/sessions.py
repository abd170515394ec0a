"""Signing in: an API key is exchanged for a signed token, which names the key and when it ends.

The token says which key it stands for and nothing of its secret. It is signed with the random bytes of this
ledger, so that every process that serves the ledger knows it, and none that serves another one. The key is
looked up for each page: a key that is revoked or expired ends its sessions at once.
"""

from __future__ import annotations

import hmac
import secrets
from hashlib import blake2b
from http.cookies import SimpleCookie

from llm_cost_ops.dashboard.exchange import PageRequest
from llm_cost_ops.ledger import KeyStore
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.service.access.keys import principal_of, principal_of_id
from llm_cost_ops.service.access.tenancy import Principal

__all__ = ["COOKIE", "SESSION_SECONDS", "Sessions", "cookie_header"]

COOKIE = "llm_cost_ops_session"

SESSION_SECONDS = 12 * 3600
"""How long a session lasts, unless its key ends before."""


class Sessions:
    """Makes and reads the tokens of sessions, and those of the forms in them."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    async def start(self, key: str, context: CallContext) -> str:
        """A token for an API key; "" for one that is not in force."""
        principal = await principal_of(self._keys, key, context)
        if principal is None:
            return ""
        ends = int(context.runtime.now()) + SESSION_SECONDS
        signed = f"{principal.key_id}.{ends}.{secrets.token_urlsafe(12)}"
        return f"{signed}.{await self._mac(signed, b'lco session', context)}"

    async def principal(self, token: str, context: CallContext) -> Principal | None:
        """Whose session a token is; None when it is none, or has ended, or its key has."""
        signed, _, mac = token.rpartition(".")
        parts = signed.split(".")
        if len(parts) != 3 or not parts[1].isascii() or not parts[1].isdigit():
            return None
        if not hmac.compare_digest(mac.encode(), (await self._mac(signed, b"lco session", context)).encode()):
            return None
        if int(parts[1]) <= context.runtime.now():
            return None
        return await principal_of_id(self._keys, parts[0], context)

    async def form_token(self, token: str, context: CallContext) -> str:
        """What the forms of a session carry; token "" is for pages without a session."""
        return await self._mac(token, b"lco form", context)

    async def _mac(self, text: str, purpose: bytes, context: CallContext) -> str:
        secret = await self._keys.secret(context)
        return blake2b(text.encode(), key=secret, digest_size=24, person=purpose).hexdigest()


def cookie_header(token: str, request: PageRequest) -> str:
    """The Set-Cookie header for a token; "" takes the cookie away."""
    cookie: SimpleCookie = SimpleCookie()
    cookie[COOKIE] = token
    kept = cookie[COOKIE]
    kept["path"] = request.root or "/"
    kept["httponly"] = True
    kept["samesite"] = "Strict"
    kept["max-age"] = SESSION_SECONDS if token else 0
    if request.is_secure:
        kept["secure"] = True
    return kept.OutputString()
