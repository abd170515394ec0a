"""What every record must satisfy, told in the words of the payload that it was read from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_cost_ops._gen.messages import UsageQuality
from llm_cost_ops.normalizers.errors import PayloadError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_cost_ops._gen.messages import ModalityTokens, UsageRecord

__all__ = ["check_record", "check_total", "fit_details"]

_DETAILS = ("cached_tokens", "cache_write_tokens", "cache_write_extended_tokens", "reasoning_tokens")
_CACHED = ("cached_audio_tokens", "cached_image_tokens", "cached_video_tokens")
_INPUT = ("input_audio_tokens", "input_image_tokens", "input_video_tokens")
_OUTPUT = ("output_audio_tokens", "output_image_tokens", "output_video_tokens")


def check_total(path: str, stated: int, expected: int, parts: str) -> None:
    """Raise PayloadError unless the total that the payload states is the sum of its `parts`."""
    if stated != expected:
        raise PayloadError(path, f"is {stated}, but {parts} is {expected}")


def check_record(record: UsageRecord, names: Mapping[str, str]) -> None:
    """Raise PayloadError when a detail exceeds its total.

    `names` gives the payload's path of a record field; the record's own name stands for others.
    """
    written = record.cache_write_tokens
    if (
        (record.modality is None or _fits(record, record.modality))
        and record.cached_tokens + written <= (record.input_tokens or 0)
        and record.cache_write_extended_tokens <= written
        and record.reasoning_tokens <= (record.output_tokens or 0)
    ):
        return
    for field, total in (
        ("cached_tokens", "input_tokens"),
        ("cache_write_tokens", "input_tokens"),
        ("cache_write_extended_tokens", "cache_write_tokens"),
        ("reasoning_tokens", "output_tokens"),
    ):
        _within(names, field, getattr(record, field), total, getattr(record, total) or 0)
    if record.cached_tokens + written > (record.input_tokens or 0):
        raise PayloadError(
            names.get("cached_tokens", "cached_tokens"),
            f"cache reads ({record.cached_tokens}) and cache writes ({written}) together exceed "
            f"{names.get('input_tokens', 'input_tokens')} ({record.input_tokens})",
        )
    if record.modality is not None:
        _check_modality(record, record.modality, names)


def fit_details(record: UsageRecord) -> None:
    """Cut the details that exceed their total, and say ESTIMATED where one did.

    Gateways state the totals and the charge, but details of another tokenizer, or reads of what the
    same call wrote: the call was charged and must not be lost.
    """
    given, returned = record.input_tokens or 0, record.output_tokens or 0
    cached = min(record.cached_tokens, given)
    written = min(record.cache_write_tokens, given - cached)
    extended = min(record.cache_write_extended_tokens, written)
    reasoning = min(record.reasoning_tokens, returned)
    fitted = (cached, written, extended, reasoning)
    if fitted != tuple(getattr(record, name) for name in _DETAILS) or (
        record.modality is not None and not _fits(record, record.modality)
    ):
        for name, value in zip(_DETAILS, fitted, strict=True):
            setattr(record, name, value)
        if record.modality is not None and not _fits(record, record.modality):
            record.modality = None
        record.quality = UsageQuality.ESTIMATED


def _fits(record: UsageRecord, m: ModalityTokens) -> bool:
    """Whether no count by modality exceeds its total: the quick answer, without saying which does."""
    spoken = m.output_audio_tokens + m.output_image_tokens + m.output_video_tokens
    return (
        m.cached_audio_tokens <= m.input_audio_tokens
        and m.cached_image_tokens <= m.input_image_tokens
        and m.cached_video_tokens <= m.input_video_tokens
        and m.input_audio_tokens + m.input_image_tokens + m.input_video_tokens <= (record.input_tokens or 0)
        and m.cached_audio_tokens + m.cached_image_tokens + m.cached_video_tokens <= record.cached_tokens
        and record.reasoning_tokens + spoken <= (record.output_tokens or 0)
    )


def _within(names: Mapping[str, str], field: str, value: int, total: str, limit: int) -> None:
    if value > limit:
        raise PayloadError(
            names.get(field, field), f"is {value}, more than {names.get(total, total)} ({limit}), its total"
        )


def _check_modality(record: UsageRecord, modality: ModalityTokens, names: Mapping[str, str]) -> None:
    for field, whole in zip(_CACHED, _INPUT, strict=True):
        _within(names, field, getattr(modality, field), whole, getattr(modality, whole))
    for fields, total in ((_INPUT, "input_tokens"), (_CACHED, "cached_tokens"), (_OUTPUT, "output_tokens")):
        parts = sum(getattr(modality, field) for field in fields)
        if parts > (getattr(record, total) or 0):
            raise PayloadError(
                names.get(total, total),
                f"is {getattr(record, total)}, less than the sum of its modalities ({parts})",
            )
    spent = record.reasoning_tokens + sum(getattr(modality, field) for field in _OUTPUT)
    if spent > (record.output_tokens or 0):
        raise PayloadError(
            names.get("output_tokens", "output_tokens"),
            f"is {record.output_tokens}, less than reasoning and modalities together ({spent})",
        )
