"""The details that OpenAI gives beside its totals, under the several names of its APIs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_cost_ops._gen.messages import ModalityTokens
from llm_cost_ops.normalizers.checks import check_total
from llm_cost_ops.normalizers.reading import count, section

if TYPE_CHECKING:
    from llm_cost_ops._gen.messages import UsageRecord

__all__ = ["cache_writes", "claude_writes", "read_modality"]


def cache_writes(details: dict[str, object], path: str) -> tuple[int, int]:
    """All cache writes, and those with the long time to live, from the details of the input."""
    written = count(details, "cache_write_tokens", path)
    split = details
    if "cache_write_tokens_details" in details:
        split = (
            section(details, "cache_write_tokens_details", f"{path}.cache_write_tokens_details") or details
        )
    if split is details and not ("ttl_12h" in details or "ttl_12h_tokens" in details):
        return written, 0
    short, long = _lived(split, "ttl_30m", path), _lived(split, "ttl_12h", path)
    if details.get("cache_write_tokens") is None:
        return short + long, long
    if short + long > written:
        check_total(f"{path}.cache_write_tokens", written, short + long, "ttl_30m + ttl_12h")
    return written, long


def claude_writes(details: dict[str, object], path: str, usage: dict[str, object]) -> tuple[int, int]:
    """Cache writes as LiteLLM tells them for Claude: in Anthropic's words, contained in the prompt."""
    written = count(usage, "cache_creation_input_tokens", "usage")
    if not written:
        written = count(details, "cache_creation_tokens", path)
    split: dict[str, Any] = {}
    for holder, key in ((details, "cache_creation_token_details"), (usage, "cache_creation")):
        split = split or section(holder, key, f"{path}.{key}") or {}
    long = count(split, "ephemeral_1h_input_tokens", path)
    return written or count(split, "ephemeral_5m_input_tokens", path) + long, long


def _lived(split: dict[str, object], ttl: str, path: str) -> int:
    return count(split, f"{ttl}_tokens" if f"{ttl}_tokens" in split else ttl, path)


def read_modality(
    inputs: dict[str, object],
    input_path: str,
    outputs: dict[str, object],
    output_path: str,
    record: UsageRecord,
) -> None:
    """Set the counts by modality, if the details of input or output have any that is not 0."""
    cached: dict[str, Any] = {}
    cached_path = ""
    if inputs.get("cached_tokens_details") is not None:
        cached_path = f"{input_path}.cached_tokens_details"
        cached = section(inputs, "cached_tokens_details", cached_path) or {}
    if not (_has_any(inputs) or _has_any(outputs) or _has_any(cached)):
        return
    record.modality = ModalityTokens(
        input_audio_tokens=count(inputs, "audio_tokens", input_path),
        input_image_tokens=count(inputs, "image_tokens", input_path),
        input_video_tokens=count(inputs, "video_tokens", input_path),
        cached_audio_tokens=count(cached, "audio_tokens", cached_path),
        cached_image_tokens=count(cached, "image_tokens", cached_path),
        cached_video_tokens=count(cached, "video_tokens", cached_path),
        output_audio_tokens=count(outputs, "audio_tokens", output_path),
        output_image_tokens=count(outputs, "image_tokens", output_path),
        output_video_tokens=count(outputs, "video_tokens", output_path),
    )


def _has_any(details: dict[str, object]) -> bool:
    return bool(details.get("audio_tokens") or details.get("image_tokens") or details.get("video_tokens"))
