"""Cohere: chat, embed, rerank and classify. What is billed stands in billed_units, as floats."""

from __future__ import annotations

from llm_cost_ops._gen.messages import Operation, UsageRecord
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.payload import count, counted, has, section, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import (
    set_key,
    set_meter,
    set_modality,
    set_model,
    set_tokens,
    set_unknown,
)

__all__ = ["PROVIDER"]

_METERS = ("search_units", "classifications", "pages", "images")


def read_cohere(payload: dict[str, object], record: UsageRecord) -> None:
    """A response of API v2 (`usage`) or v1 and embed, rerank, classify (`meta`); pass `model_id=`."""
    set_model(record, text(payload, "model"))
    set_key(record, text(payload, "id") or text(payload, "response_id") or text(payload, "generation_id"))
    root = "usage" if has(payload, "usage") else "meta"
    usage = section(payload, root) or {}
    billed = section(usage, "billed_units", root)
    record.operation = _operation(payload, billed or {})
    if billed is None:
        set_unknown(record)
        return
    path = f"{root}.billed_units"
    given, returned = count(billed, "input_tokens", path), count(billed, "output_tokens", path)
    others = any(has(billed, meter) for meter in (*_METERS, "image_tokens", "text_tokens"))
    if (
        record.operation == Operation.CHAT
        and not others
        and not (has(billed, "input_tokens") and has(billed, "output_tokens"))
    ):
        record.input_tokens = counted(billed, "input_tokens", path)
        record.output_tokens = counted(billed, "output_tokens", path)
        set_unknown(record)
        return
    set_tokens(record, given, returned)
    for meter in _METERS:
        set_meter(record, meter, count(billed, meter, path))
    image_tokens = count(billed, "image_tokens", path)
    if image_tokens or has(billed, "text_tokens"):
        # With text_tokens the input is text and images together; without, input_tokens is the text alone.
        text_tokens = count(billed, "text_tokens", path) if has(billed, "text_tokens") else given
        set_tokens(record, max(given, text_tokens + image_tokens), returned)
        set_modality(record, input_image_tokens=image_tokens)
    _read_cached(usage, root, record)


def _read_cached(usage: dict[str, object], root: str, record: UsageRecord) -> None:
    """Cache reads are counted in `tokens`, which has more of them than are billed."""
    cached = count(usage, "cached_tokens", root)
    tokens = section(usage, "tokens", root) or {}
    billed = record.input_tokens or 0
    seen = max(count(tokens, "input_tokens", f"{root}.tokens"), billed)
    if cached > seen:
        raise PayloadError(f"{root}.cached_tokens", f"is {cached}, more than the input tokens ({seen})")
    record.cached_tokens = min(cached, billed)


def _operation(payload: dict[str, object], billed: dict[str, object]) -> Operation:
    if has(payload, "embeddings"):
        return Operation.EMBEDDINGS
    if has(payload, "results") or has(billed, "search_units"):
        return Operation.RERANK
    if has(billed, "classifications"):
        return Operation.UNSPECIFIED
    return Operation.CHAT


def _detect(payload: dict[str, object], usage: dict[str, object] | None) -> str:
    if usage is not None:
        return "cohere.chat" if "billed_units" in usage or "tokens" in usage else ""
    meta = None if type(payload.get("meta")) in _PLAIN else section(payload, "meta")
    return "cohere.chat" if meta is not None and "billed_units" in meta else ""


_PLAIN = (str, bytes, int, float, bool, list, tuple)
PROVIDER = Provider("cohere", {"cohere.chat": read_cohere}, models=("command-",), detect=_detect)
