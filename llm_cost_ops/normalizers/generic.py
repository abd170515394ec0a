"""Usage in this project's own words, for providers that need no normalizer."""

from __future__ import annotations

from llm_cost_ops._gen.messages import ModalityTokens, UsageRecord
from llm_cost_ops.normalizers.payload import count, counted, duration_ms, has, section, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import (
    check_record,
    check_total,
    set_identity,
    set_meter,
    set_modality,
    set_stated,
    set_tier,
    set_unknown,
)

__all__ = ["PROVIDER"]

_MODALITIES = tuple(name for name in ModalityTokens.__struct_fields__ if name.endswith("_tokens"))
_METERS = (
    "requests",
    "web_searches",
    "file_searches",
    "social_searches",
    "code_executions",
    "code_interpreter_sessions",
    "pages",
    "annotated_pages",
    "images",
    "characters",
    "search_units",
    "classifications",
    "citation_tokens",
    "audio_ms",
)
_DETAILS = ("cache_write_tokens", "cache_write_extended_tokens", "reasoning_tokens")


def read_generic(payload: dict[str, object], record: UsageRecord) -> None:
    """`usage` with inclusive input_tokens and output_tokens, their details, and meters by name.

    A count that is left out is what total_tokens leaves for it, or 0; one that is null is not known.
    cached_tokens may be called cache_read_tokens; audio_seconds become `meters.audio_ms`.
    """
    set_identity(record, payload)
    set_tier(record, text(payload, "service_tier"))
    usage = section(payload, "usage")
    if not usage:
        set_unknown(record)
        return
    _read_meters(usage, record)
    total = counted(usage, "total_tokens", "usage")
    given, returned = _stated(usage, "input_tokens"), _stated(usage, "output_tokens")
    if given is None and returned is None and total is None:
        # Billed by its meters alone, if it has any.
        if not record.meters:
            set_unknown(record)
        return
    if not set_stated(record, given, returned, total):
        return
    if total is not None:
        check_total("usage.total_tokens", total, record.total_tokens or 0, "input_tokens + output_tokens")
    record.cached_tokens = _cached(usage, "tokens")
    for name in _DETAILS:
        setattr(record, name, count(usage, name, "usage"))
    modalities = {name: count(usage, name, "usage") for name in _MODALITIES}
    for kind in ("audio", "image", "video"):
        modalities[f"cached_{kind}_tokens"] = _cached(usage, f"{kind}_tokens")
    set_modality(record, **modalities)
    check_record(record, {})


def _stated(usage: dict[str, object], key: str) -> int | None:
    """A count that is left out beside another is 0; one that is null, or all left out, is not known."""
    is_left_out = key not in usage and ("input_tokens" in usage or "output_tokens" in usage)
    return 0 if is_left_out and not has(usage, "total_tokens") else counted(usage, key, "usage")


def _cached(usage: dict[str, object], of: str) -> int:
    key = f"cached_{of}"
    return count(usage, key if key in usage else f"cache_read_{of}", "usage")


def _read_meters(usage: dict[str, object], record: UsageRecord) -> None:
    for name in _METERS:
        set_meter(record, name, count(usage, name, "usage"))
    set_meter(record, "audio_ms", duration_ms(usage.get("audio_seconds"), "usage.audio_seconds"))
    meters = section(usage, "meters", "usage") or {}
    for name in meters:
        set_meter(record, name, count(meters, name, "usage.meters"))


PROVIDER = Provider("", {"generic": read_generic})
