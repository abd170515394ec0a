"""OpenTelemetry's gen_ai.* attributes of a span, in all their spellings.

Totals are inclusive. The response's id is the idempotency key.
"""

from __future__ import annotations

from typing import Any

from llm_cost_ops._gen.messages import Operation, UsageRecord
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.payload import count, counted, moment, section, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import (
    check_record,
    check_total,
    set_key,
    set_model,
    set_stated,
    set_tier,
)
from llm_cost_ops.rules.providers import served_by
from llm_cost_ops.rules.requests import total_tokens

__all__ = ["PROVIDER"]

_USAGE = "gen_ai.usage."
_INPUT = ("input_tokens", "prompt_tokens")
_OUTPUT = ("output_tokens", "completion_tokens")
_CACHED = (
    "cache_read.input_tokens",
    "cache_read_input_tokens",
    "input_tokens.cached",
    "input_tokens.cache_read",
)
_WRITTEN = (
    "cache_creation.input_tokens",
    "cache_write.input_tokens",
    "cache_creation_input_tokens",
    "cache_write_input_tokens",
    "input_tokens.cache_write",
)
_REASONING = ("reasoning.output_tokens", "output_tokens.reasoning", "reasoning_tokens")
_NAMES = {
    "input_tokens": _USAGE + _INPUT[0],
    "output_tokens": _USAGE + _OUTPUT[0],
    "cached_tokens": _USAGE + _CACHED[0],
    "cache_write_tokens": _USAGE + _WRITTEN[0],
    "reasoning_tokens": _USAGE + _REASONING[0],
}
_OPERATIONS = {
    "chat": Operation.CHAT,
    "generate_content": Operation.CHAT,
    "text_completion": Operation.TEXT_COMPLETION,
    "embeddings": Operation.EMBEDDINGS,
    "execute_tool": Operation.TOOL,
}


def _is_span(payload: dict[str, object]) -> bool:
    """Whether this is a dict of gen_ai.* attributes, or a span that carries one in `attributes`."""
    attributes = payload.get("attributes")
    keys = attributes if isinstance(attributes, dict) else payload
    return any(type(key) is str and key.startswith("gen_ai.") for key in keys)


def read_attributes(payload: dict[str, Any], record: UsageRecord) -> None:
    """A dict of attributes, or a span as JSON: `attributes`, `context`, `start_time`."""
    attributes = payload
    if isinstance(payload.get("attributes"), dict):
        attributes = payload["attributes"]
        record.timestamp = moment(payload.get("start_time"), "start_time")
        context = section(payload, "context") or {}
        record.trace_id = text(context, "trace_id").removeprefix("0x")
        record.span_id = text(context, "span_id").removeprefix("0x")
    if not record.provider:
        name = text(attributes, "gen_ai.provider.name") or text(attributes, "gen_ai.system")
        record.provider = served_by(name, text(attributes, "server.address"))
    record.requested_model_id = text(attributes, "gen_ai.request.model")
    set_model(record, text(attributes, "gen_ai.response.model") or record.requested_model_id)
    set_key(record, text(attributes, "gen_ai.response.id"))
    record.operation = _OPERATIONS.get(text(attributes, "gen_ai.operation.name"), record.operation)
    record.session_id = text(attributes, "gen_ai.conversation.id")
    for key in ("openai.response.service_tier", "gen_ai.openai.response.service_tier"):
        set_tier(record, text(attributes, key))
    _read_counts(attributes, record)


def _read_counts(attributes: dict[str, object], record: UsageRecord) -> None:
    given, returned = _one_of(attributes, _INPUT), _one_of(attributes, _OUTPUT)
    if record.operation == Operation.EMBEDDINGS and returned is None and given is not None:
        returned = 0
    if not set_stated(record, given, returned, counted(attributes, _USAGE + "total_tokens", "attributes")):
        return
    record.cached_tokens = _one_of(attributes, _CACHED) or 0
    record.cache_write_tokens = _one_of(attributes, _WRITTEN) or 0
    record.reasoning_tokens = _one_of(attributes, _REASONING) or 0
    if attributes.get(_USAGE + "total_tokens") is not None:
        stated = count(attributes, _USAGE + "total_tokens", "attributes")
        expected = total_tokens(record)
        check_total(_USAGE + "total_tokens", stated, expected, "input_tokens + output_tokens")
    check_record(record, _NAMES)


def _one_of(attributes: dict[str, object], spellings: tuple[str, ...]) -> int | None:
    """The count under any of its spellings; those that are given must agree."""
    found: int | None = None
    first = ""
    for spelling in spellings:
        key = _USAGE + spelling
        if attributes.get(key) is None:
            continue
        value = count(attributes, key, "attributes")
        if found is not None and value != found:
            raise PayloadError(key, f"is {value}, but {first} is {found}")
        found, first = value, first or key
    return found


def _detect(payload: dict[str, object], usage: dict[str, object] | None) -> str:
    return "opentelemetry" if usage is None and _is_span(payload) else ""


PROVIDER = Provider("", {"opentelemetry": read_attributes}, detect=_detect)
