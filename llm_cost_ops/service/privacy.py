"""Erases users."""

from __future__ import annotations

from llm_cost_ops._gen.messages import EraseUserRequest, EraseUserResponse, Erasure, ResponseMeta
from llm_cost_ops.ledger import Ledger, Position
from llm_cost_ops.rpc.context import CallContext, uuid7
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service.access.tenancy import actor_of

__all__ = ["PrivacyService"]


class PrivacyService:
    """Erases users: some records at a time, so that other writers wait for milliseconds only."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def erase_user(self, request: EraseUserRequest, context: CallContext) -> EraseUserResponse:
        """Erase a user; DEADLINE_EXCEEDED says what was done, which stays."""
        done = Erasure(id=uuid7())
        organizations = tuple(request.organization_id)
        after: Position | None = None
        try:
            while True:
                step = await self._ledger.erase_user(
                    request.user_id, organizations, done.id, after, context, actor=actor_of(context)
                )
                done.records += step.records
                after = step.position
                if after is None:
                    return EraseUserResponse(data=done, meta=ResponseMeta(request_id=context.request_id))
                context.check_deadline()
        except RpcError as error:
            if error.code is not StatusCode.DEADLINE_EXCEEDED:
                raise
            said = f"{done.records:,} records were changed and stay so: the same call with more time goes on"
            raise RpcError(error.code, f"{error.message}; {said}", maybe_applied=True) from error
