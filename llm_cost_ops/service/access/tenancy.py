"""Who may do what, and with whose data: every method passes here.

A call without a principal is one of the embedded engine, or of a server without keys: it may do everything.
Any other is held to its principal's role and organizations by the rule of its method in RULES; a method
without a rule is closed to it. To name another organization is PERMISSION_DENIED, whether that organization
exists or not; a filter that names none means all of the principal's own; what belongs to another organization
is NOT_FOUND by its id, as what does not exist. Servicers ask `may_access` of what a request alone can't tell.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from llm_cost_ops._gen.methods import (
    APPLY_RETENTION,
    BATCH_SUBMIT_USAGE,
    CORRECT_USAGE,
    CREATE_PRICE,
    ERASE_USER,
    ESTIMATE_COST,
    EXPORT_USAGE,
    GET_ANALYTICS,
    GET_COST,
    GET_COST_SUMMARY,
    GET_HEALTH,
    GET_PRICE,
    GET_READINESS,
    LIST_AUDIT_EVENTS,
    LIST_PRICES,
    LIST_RETENTION,
    LIST_USAGE,
    LIST_USAGE_REVISIONS,
    REPRICE_USAGE,
    SET_RETENTION,
    STREAM_USAGE,
    SUBMIT_USAGE,
    VERIFY_COST,
    VOID_USAGE,
)
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.interceptor import Req, Res, StreamContinuation, UnaryContinuation
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation, invalid_argument

__all__ = [
    "OPEN",
    "OTHER_ORGANIZATION",
    "RULES",
    "Principal",
    "Role",
    "Rule",
    "Tenancy",
    "actor_of",
    "allowed_organizations",
    "check_role",
    "may_access",
    "organization_of",
    "tenant_of",
]

OTHER_ORGANIZATION = "is not one that this API key may use"


class Role(enum.IntEnum):
    """What a key may do; each role may do what those before it may.

    A key for metrics reads the server's figures at /metrics, and may call no method. A reader reads, a writer
    records usage, an admin keeps prices, corrects usage and reads the audit log. Prices without an
    organization hold for everybody, so that they need an admin of all organizations.
    """

    METRICS = 0
    READER = 1
    WRITER = 2
    ADMIN = 3


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls: a key, its role, and its organizations, None for all of them.

    `expires_at` is when the key ends, in seconds since 1970; None where it was given no end.
    """

    key_id: str
    role: Role
    organizations: frozenset[str] | None
    expires_at: float | None = None


class Rule(NamedTuple):
    """What a method asks of a principal: a role, and of its request what `scoped` says.

    `scoped` gets the request and the organizations, and returns the request or one that is narrower; it
    raises PERMISSION_DENIED.
    """

    role: Role
    scoped: Callable[[Any, frozenset[str]], Any]


def may_access(context: CallContext, organization_id: str) -> bool:
    """Whether the caller may see and write what belongs to an organization, or to everybody when ""."""
    principal: Principal | None = context.principal
    if principal is None or principal.organizations is None or not organization_id:
        return True
    return organization_id in principal.organizations


def allowed_organizations(context: CallContext) -> frozenset[str] | None:
    """The caller's organizations; None for all of them."""
    principal: Principal | None = context.principal
    return None if principal is None else principal.organizations


def actor_of(context: CallContext) -> str:
    """The id of the key of who calls; "" where none is needed."""
    principal: Principal | None = context.principal
    return "" if principal is None else principal.key_id


def organization_of(named: str, context: CallContext) -> str:
    """The organization whose record a request names: the one it gives, or the only one that the caller has.

    INVALID_ARGUMENT where the caller may see several.
    """
    organizations = allowed_organizations(context)
    if named:
        return named
    if organizations is not None and len(organizations) == 1:
        return next(iter(organizations))
    rule = "must be given: the record is looked up in one organization, and this caller may see several"
    raise invalid_argument("organization_id", rule)


def tenant_of(context: CallContext) -> str:
    """A short text that is the same for the same organizations; "" for all. Cursors carry it."""
    organizations = allowed_organizations(context)
    if organizations is None:
        return ""
    return blake2b(msgspec.json.encode(sorted(organizations)), digest_size=8).hexdigest()


def _denied(field: str, rule: str = OTHER_ORGANIZATION) -> RpcError:
    return RpcError(StatusCode.PERMISSION_DENIED, f"{field} {rule}", violations=[Violation(field, rule)])


def _any(request: object, _: frozenset[str]) -> object:
    return request


def _filtered(request: Any, organizations: frozenset[str]) -> object:
    """A filter by organizations: those named must be the caller's, and none named means all of them."""
    if not organizations.issuperset(request.organization_id):
        raise _denied("organization_id")
    if not request.organization_id:
        request = copy.copy(request)
        request.organization_id = sorted(organizations)
    return request


def _named(request: Any, organizations: frozenset[str]) -> object:
    """A request that names one organization, or "" for what belongs to everybody."""
    if request.organization_id and request.organization_id not in organizations:
        raise _denied("organization_id")
    return request


def _record(request: Any, organizations: frozenset[str]) -> object:
    if request.usage.organization_id not in organizations:
        raise _denied("organization_id")
    return request


def _estimated(request: Any, organizations: frozenset[str]) -> object:
    # Without an organization only everybody's prices count.
    return _record(request, organizations) if request.usage.organization_id else request


def _price(request: Any, organizations: frozenset[str]) -> object:
    if not request.organization_id:
        rule = "must be given: prices for everybody need an admin key of all organizations"
        raise _denied("organization_id", rule)
    return _named(request, organizations)


OPEN: frozenset[str] = frozenset({GET_HEALTH.path, GET_READINESS.path})
"""The methods that need no key."""

RULES: dict[str, Rule] = {
    SUBMIT_USAGE.path: Rule(Role.WRITER, _record),
    # Its records are answered one by one, by the servicer.
    BATCH_SUBMIT_USAGE.path: Rule(Role.WRITER, _any),
    STREAM_USAGE.path: Rule(Role.WRITER, _any),
    LIST_USAGE.path: Rule(Role.READER, _filtered),
    EXPORT_USAGE.path: Rule(Role.READER, _filtered),
    VOID_USAGE.path: Rule(Role.ADMIN, _named),
    CORRECT_USAGE.path: Rule(Role.ADMIN, _named),
    LIST_USAGE_REVISIONS.path: Rule(Role.READER, _named),
    GET_COST_SUMMARY.path: Rule(Role.READER, _filtered),
    GET_ANALYTICS.path: Rule(Role.READER, _filtered),
    GET_COST.path: Rule(Role.READER, _named),
    VERIFY_COST.path: Rule(Role.READER, _named),
    ESTIMATE_COST.path: Rule(Role.READER, _estimated),
    REPRICE_USAGE.path: Rule(Role.ADMIN, _filtered),
    CREATE_PRICE.path: Rule(Role.ADMIN, _price),
    # Whose card it is, the servicer finds out.
    GET_PRICE.path: Rule(Role.READER, _any),
    LIST_PRICES.path: Rule(Role.READER, _named),
    LIST_AUDIT_EVENTS.path: Rule(Role.ADMIN, _filtered),
    ERASE_USER.path: Rule(Role.ADMIN, _filtered),
    SET_RETENTION.path: Rule(Role.ADMIN, _named),
    LIST_RETENTION.path: Rule(Role.READER, _filtered),
    APPLY_RETENTION.path: Rule(Role.ADMIN, _filtered),
}
"""The rule of each method by its path; those in OPEN have none."""


class Tenancy:
    """Refuses calls that break the rules. It runs after validation and before the servicer."""

    # Not async: a layer that does nothing after the call costs half of what a coroutine does.
    def intercept_unary_unary(
        self, continuation: UnaryContinuation[Req, Res], request: Req, context: CallContext
    ) -> Awaitable[Res]:
        if context.principal is not None:
            request = _scoped(request, context)
        return continuation(request, context)

    async def intercept_unary_stream(
        self, continuation: StreamContinuation[Req, Res], request: Req, context: CallContext
    ) -> AsyncGenerator[Res, None]:
        if context.principal is not None:
            request = _scoped(request, context)
        async with aclosing(continuation(request, context)) as messages:
            async for message in messages:
                yield message

    # There the request is a stream of them, each of which the servicer looks at.
    intercept_stream_stream = intercept_unary_stream


def _scoped(request: object, context: CallContext) -> Any:
    rule = check_role(context)
    organizations = allowed_organizations(context)
    return request if rule is None or organizations is None else rule.scoped(request, organizations)


def check_role(context: CallContext) -> Rule | None:
    """The rule of a call, whose principal's role it lets through; None for one of OPEN.

    Raises PERMISSION_DENIED. It needs nothing of the request.
    """
    principal: Principal = context.principal
    if context.method.path in OPEN:
        return None
    rule = RULES.get(context.method.path)
    if rule is None:
        raise RpcError(StatusCode.PERMISSION_DENIED, f"no API key may call {context.method.name}")
    if principal.role < rule.role:
        raise RpcError(
            StatusCode.PERMISSION_DENIED,
            f"{context.method.name} needs an API key with the role {rule.role.name.lower()}, "
            f"and this one is {principal.role.name.lower()}",
        )
    return rule
