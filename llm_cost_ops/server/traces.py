"""`POST /v1/traces`: spans of calls, as OpenTelemetry's exporters send them, become usage records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from llm_cost_ops._gen.messages import (
    BatchSubmitUsageRequest,
    BatchSubmitUsageResponse,
    SubmitResult,
    SubmitStatus,
    UsageRecord,
)
from llm_cost_ops._gen.methods import BATCH_SUBMIT_USAGE
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.status import RpcError, StatusCode, invalid_argument
from llm_cost_ops.rules.requests import MAX_BATCH
from llm_cost_ops.service.access.tenancy import allowed_organizations
from llm_cost_ops.wire import DecodeError

__all__ = ["TRACES_PATH", "Traces"]

TRACES_PATH = "/v1/traces"

_WRITTEN = (SubmitStatus.CREATED, SubmitStatus.DUPLICATE)
_RETRY_AFTER = 5.0
_UNNAMED = (
    "must be given: in the header x-lco-organization, in the attribute llm_cost_ops.organization_id of a "
    "span or its resource, or by an API key of one organization"
)


class Traces:
    """Records the calls among spans, as a batch of usage that its caller could submit.

    Each record says by itself whose it is (the attributes llm_cost_ops.organization_id and project_id of the
    span or its resource), else the headers x-lco-organization and x-lco-project do, else the caller's key.
    """

    method = BATCH_SUBMIT_USAGE
    kinds = ("application/x-protobuf", "application/json")

    def __init__(self, handler: ServiceHandler) -> None:
        self._handler = handler

    async def answer(self, kind: str, body: bytes, context: CallContext) -> bytes:
        """Write the calls in an ExportTraceServiceRequest, and give the response. Raises RpcError."""
        from llm_cost_ops.server.otlp import encode_answer  # here: most servers take no spans

        try:
            records = await context.runtime.offload(_records, kind, body)
        except DecodeError as error:
            raise invalid_argument(error.path or "body", error.reason) from None
        _attribute(records, context)
        answer = self._handler.answers[BATCH_SUBMIT_USAGE.path]
        reasons: Counter[str] = Counter()
        later: RpcError | None = None
        for first in range(0, len(records), MAX_BATCH):
            request = BatchSubmitUsageRequest(records=records[first : first + MAX_BATCH])
            response: BatchSubmitUsageResponse = await answer(request, context)
            assert response.data is not None
            reasons.update(_refusals(response.data.results))
            later = later or _unavailable(response.data.results)
        if later is not None:
            # Only now: the request may never get through as a whole, and its other calls count.
            raise later
        return encode_answer(kind, reasons.total(), _message(reasons))

    def error(self, kind: str, error: RpcError) -> bytes:
        """The body of an error."""
        from llm_cost_ops.server.otlp import encode_error

        return encode_error(kind, error.code, error.message)


def _records(kind: str, body: bytes) -> list[UsageRecord]:
    from llm_cost_ops.imports.spans import calls_of, observed
    from llm_cost_ops.server.otlp import JSON, json_spans, protobuf_spans

    spans = json_spans(body) if kind == JSON else protobuf_spans(body)
    return [observed(span) for span in calls_of(spans)]


def _attribute(records: Sequence[UsageRecord], context: CallContext) -> None:
    organization = context.metadata.get("x-lco-organization")
    project = context.metadata.get("x-lco-project")
    if not organization:
        organizations = allowed_organizations(context) or ()
        organization = next(iter(organizations)) if len(organizations) == 1 else ""
    for record in records:
        record.organization_id = record.organization_id or organization
        record.project_id = record.project_id or project
        if not record.organization_id:
            raise invalid_argument("organization_id", _UNNAMED)


def _refusals(results: Iterable[SubmitResult]) -> list[str]:
    """Why records were not written."""
    reasons = []
    for result in results:
        if result.status in _WRITTEN:
            continue
        error = result.error
        broken = [] if error is None else error.violations[:1]
        # The field of the record; where it stands in a batch says nothing to who sent spans.
        named = [f"{each.field.rpartition('.')[2]} {each.description}" for each in broken]
        reasons.append(named[0] if named else "not recorded")
    return reasons


def _unavailable(results: Iterable[SubmitResult]) -> RpcError | None:
    """UNAVAILABLE, where a record was not written and may be if it comes again."""
    for result in results:
        error = result.error
        if result.status not in _WRITTEN and error is not None and error.code == StatusCode.UNAVAILABLE.name:
            return RpcError(StatusCode.UNAVAILABLE, error.message, retry_after=_RETRY_AFTER)
    return None


def _message(reasons: Counter[str]) -> str:
    return "; ".join(f"{reason} ({count} spans)" for reason, count in reasons.most_common(5))
