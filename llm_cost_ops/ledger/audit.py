"""What goes into the audit log: the same on every ledger.

An event names who did what to which key, card or record, and never a secret or a user: what is erased later
must not stand here. Reasons that people give are kept with the revisions, not here, since they are free text.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from llm_cost_ops._gen.messages import AuditEvent, RateCard, RevisionKind
from llm_cost_ops.ledger.types import ApiKey, Revision

__all__ = [
    "LOCAL",
    "card_added",
    "erased",
    "key_added",
    "key_revoked",
    "repriced",
    "retention_applied",
    "retention_set",
    "revised",
]

LOCAL = "local"
"""The actor where no key was needed: a command, the embedded engine, a server without keys."""


def _event(
    at: datetime, actor: str, organization_id: str, action: str, subject: str = "", **details: object
) -> AuditEvent:
    return AuditEvent(
        made_at=at,
        actor=actor or LOCAL,
        organization_id=organization_id,
        action=action,
        subject=subject,
        details=details,
    )


def key_added(key: ApiKey, actor: str) -> list[AuditEvent]:
    """That a key was made: for each of its organizations, or once for all of them."""
    details: dict[str, object] = {"role": key.role}
    if key.expires_at is not None:
        details["expires_at"] = key.expires_at.isoformat()
    return [_event(key.created_at, actor, org, "key.created", key.id, **details) for org in _whose(key)]


def key_revoked(key: ApiKey, at: datetime, actor: str) -> list[AuditEvent]:
    """That a key was revoked: for each of its organizations, or once for all of them."""
    return [_event(at, actor, org, "key.revoked", key.id, role=key.role) for org in _whose(key)]


def _whose(key: ApiKey) -> tuple[str, ...]:
    return ("",) if key.organizations is None else key.organizations


def card_added(card: RateCard, at: datetime, actor: str) -> AuditEvent:
    """That a price card came into force; `card` has its version."""
    details = {"provider": card.provider, "model_id": card.model_id, "version": card.version}
    return _event(at, actor, card.organization_id, "price.created", card.id, **details)


def revised(revision: Revision) -> AuditEvent:
    """That a record was corrected or voided."""
    voided = revision.kind == RevisionKind.VOIDED
    return _event(
        revision.made_at,
        revision.actor,
        revision.organization_id,
        "usage.voided" if voided else "usage.corrected",
        revision.usage_id,
        revision=revision.after + 1,
    )


def erased(records: Mapping[str, int], subject: str, at: datetime, actor: str) -> list[AuditEvent]:
    """That a user was erased from so many records of organizations; `subject` is the id of the erasure."""
    return [
        _event(at, actor, organization, "user.erased", subject, records=number)
        for organization, number in sorted(records.items())
    ]


def retention_set(organization_id: str, days: int, at: datetime, actor: str) -> AuditEvent:
    """That an organization's records are kept for so many days from now on."""
    return _event(at, actor, organization_id, "retention.set", organization_id, days=days)


def retention_applied(organization_id: str, before: datetime, at: datetime, actor: str) -> AuditEvent:
    """That an organization's records from before a moment begin to be removed."""
    details = {"before": before.isoformat()}
    return _event(at, actor, organization_id, "retention.applied", organization_id, **details)


def repriced(records: Mapping[str, int], at: datetime, actor: str) -> list[AuditEvent]:
    """That so many records of organizations were repriced, by one step of it."""
    return [
        _event(at, actor, organization, "usage.repriced", records=number)
        for organization, number in sorted(records.items())
    ]
