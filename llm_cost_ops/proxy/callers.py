"""Who calls, by an API key, and for which organization it may be recorded."""

from __future__ import annotations

import time
from hashlib import blake2b

from llm_cost_ops._gen.methods import GET_HEALTH
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.ledger import KeyStore
from llm_cost_ops.proxy.limits import RefusedError
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.service.access.keys import principal_of
from llm_cost_ops.service.access.tenancy import Principal, Role

__all__ = ["Callers"]

_LOOKUP_SECONDS = 5.0
_TRUSTED_SECONDS = 3600.0
_MAX_TRUSTED = 10_000


class Callers:
    """Asks who calls, of the keys of a database; without `required` a call without a key passes too.

    Keys are looked up for each call, so that a revoked one is refused from then on. While they can't be
    looked up, a key that was good within the last hour is, until it expires.
    """

    def __init__(self, keys: KeyStore | None, *, required: bool) -> None:
        self._keys = keys
        self._required = required
        self._runtime = AsyncRuntime()
        self._good: dict[bytes, tuple[Principal, float]] = {}

    async def check(self) -> None:
        """Raise ConfigurationError where the keys can't be looked up."""
        if self._keys is None:
            return
        try:
            await self._keys.any(self._context())
        except RpcError as error:
            raise ConfigurationError(f"keys: {error.message}", parameter="keys") from error

    async def organization(self, api_key: str, named: str, default: str) -> str:
        """The organization to record a call for; "" if none is known.

        `named` is what the request names and `default` what the proxy has for those that name none.
        RefusedError for a key that is not in force, that may not record, or that is another organization's.
        """
        if not api_key:
            if self._required:
                raise RefusedError(401, "no_api_key", "x-lco-api-key must be an API key of this proxy")
            return named or default
        principal = await self._principal(api_key)
        if principal.role < Role.WRITER:
            role = principal.role.name.lower()
            raise RefusedError(403, "wrong_role", f"x-lco-api-key is a {role}'s, and must be a writer's")
        own = principal.organizations
        if own is None:
            return named or default
        if not named:
            return next(iter(own)) if len(own) == 1 else default if default in own else ""
        if named not in own:
            raise RefusedError(
                403, "other_organization", "x-lco-organization is not one that this API key may use"
            )
        return named

    async def _principal(self, api_key: str) -> Principal:
        if self._keys is None:
            raise RefusedError(401, "no_keys", "x-lco-api-key: this proxy has no API keys to compare it with")
        mark = blake2b(api_key.encode(), digest_size=16).digest()
        try:
            found = await principal_of(self._keys, api_key, self._context())
        except RpcError:
            known, until = self._good.get(mark, (None, 0.0))
            if known is None or until < time.monotonic():
                raise RefusedError(503, "keys_unavailable", "API keys can't be looked up now") from None
            return known
        if found is None:
            self._good.pop(mark, None)
            raise RefusedError(401, "invalid_api_key", "x-lco-api-key is no valid API key of this proxy")
        if len(self._good) >= _MAX_TRUSTED:
            self._good.clear()
        trusted = _TRUSTED_SECONDS
        if found.expires_at is not None:
            trusted = min(trusted, found.expires_at - self._runtime.now())
        self._good[mark] = (found, time.monotonic() + trusted)
        return found

    def _context(self) -> CallContext:
        return CallContext(GET_HEALTH, self._runtime, Metadata(), self._runtime.monotonic() + _LOOKUP_SECONDS)
