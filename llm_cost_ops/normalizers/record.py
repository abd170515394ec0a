"""Writing what payloads state into a record, and the checks that every record must pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from llm_cost_ops._gen.messages import ModalityTokens, UsageQuality, UsageRecord
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.payload import MAX_NUMBER, count, created_at, section, text

__all__ = [
    "CLAUDE_WRITES",
    "cache_writes",
    "check_record",
    "check_total",
    "claude_writes",
    "count_grounded",
    "fit_details",
    "fit_text",
    "fit_texts",
    "read_modality",
    "set_geography",
    "set_identity",
    "set_key",
    "set_meter",
    "set_modality",
    "set_model",
    "set_speed",
    "set_stated",
    "set_tier",
    "set_tokens",
    "set_traffic",
    "set_unknown",
    "set_unstated",
    "set_vertex_tier",
]

_MAX_KEY = 255
# What no text of a record may hold: control characters and lone surrogates.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_MAX_TEXTS = {
    "provider": 100,
    "model_id": 255,
    "requested_model_id": 255,
    "service_tier": 64,
    "processing": 64,
    "region": 64,
    "speed": 64,
    "user_id": 255,
    "session_id": 255,
}
# The names by which providers call the tier that costs the list price.
_STANDARD = frozenset({"", "default", "standard", "auto", "on_demand", "standard_only", "unspecified"})

# What inference_geo says when no geography was asked for, or when it is not known.
_EVERYWHERE = frozenset({"", "global", "not_available"})


def set_key(record: UsageRecord, response_id: str) -> None:
    """Make the response's id the idempotency key, with the provider before it.

    Recording one response twice then counts once. An id that no key may hold is hashed: one that is too long,
    or has control characters.
    """
    if response_id:
        key = f"{record.provider}:{response_id}" if record.provider else response_id
        if len(key) > _MAX_KEY or (not key.isprintable() and _FORBIDDEN.search(key)):
            data = response_id.encode("utf-8", "surrogatepass")
            key = f"{record.provider[:100]}:{blake2b(data, digest_size=32).hexdigest()}"
        record.idempotency_key = key


def fit_text(value: str, length: int) -> str:
    """A text as a record may hold it: cut to `length`, control characters replaced by U+FFFD."""
    if len(value) <= length and value.isprintable():
        return value
    return _FORBIDDEN.sub("\ufffd", value[:length])


def fit_texts(record: UsageRecord) -> None:
    """Make the texts that somebody else wrote fit the record of a call that was observed.

    It was made and is billed: a name that no record may hold is no reason to lose it.
    """
    for name, length in _MAX_TEXTS.items():
        value = getattr(record, name)
        if len(value) > length or not value.isprintable():
            setattr(record, name, fit_text(value, length))


def set_model(record: UsageRecord, model: str) -> None:
    """Set the model unless the caller named it."""
    if not record.model_id:
        record.model_id = model


def set_identity(record: UsageRecord, payload: dict[str, object], created: str = "created") -> None:
    """Set model, time and key from `model`, `created` and `id`."""
    # Nearly always strings: to look here saves two calls of each response.
    if not record.model_id:
        model = payload.get("model")
        record.model_id = model if type(model) is str else text(payload, "model")
    response_id = payload.get("id")
    set_key(record, response_id if type(response_id) is str else text(payload, "id"))
    if created in payload:
        record.timestamp = created_at(payload[created])


def set_tier(record: UsageRecord, tier: str) -> None:
    """Set the service tier that served the call; the provider's names of the standard one are ""."""
    if tier in _STANDARD:
        return
    tier = tier.lower()
    if tier == "batch":
        record.processing = "batch"
    elif tier not in _STANDARD:
        record.service_tier = tier


def set_speed(record: UsageRecord, speed: str) -> None:
    """Set the speed that served the call; the standard one is ""."""
    record.speed = "" if speed == "standard" else speed


def set_geography(record: UsageRecord, geography: str) -> None:
    """Set the region from Claude's `inference_geo`, which has words for none."""
    geography = geography.lower()
    record.region = "" if geography in _EVERYWHERE else geography


def set_traffic(record: UsageRecord, traffic: str) -> None:
    """Set the tier that Google's traffic type or `serviceTier` names."""
    if traffic and traffic != "ON_DEMAND":
        set_tier(record, traffic.lower().removeprefix("traffic_type_").removeprefix("on_demand_"))


def set_vertex_tier(record: UsageRecord, usage: dict[str, object]) -> None:
    """Set the tier that Vertex AI tells in an answer of OpenAI's shape."""
    properties = section(usage, "extra_properties", "usage") or {}
    facts = section(properties, "google", "usage.extra_properties") or {}
    set_traffic(record, text(facts, "traffic_type"))


def set_meter(record: UsageRecord, name: str, quantity: int) -> None:
    """Add to a meter; a quantity of 0 leaves no trace."""
    if quantity:
        total = record.meters.get(name, 0) + quantity
        if total > MAX_NUMBER:
            raise PayloadError("usage", f"{name} together cannot exceed 2^63 - 1, got {total}")
        record.meters[name] = total


# Grounding is billed by the query from Gemini 3 on, by the grounded prompt before.
_BILLED_BY_PROMPT = re.compile(r"(?:.*/)?gemini-[12]\b")


def count_grounded(record: UsageRecord, quantity: int) -> int:
    """How many of a Gemini model's searches are billed; all of any other model."""
    return min(quantity, 1) if _BILLED_BY_PROMPT.match(record.model_id) else quantity


def set_tokens(record: UsageRecord, input_tokens: int, output_tokens: int) -> None:
    """Set both totals and their sum; PayloadError when the sum exceeds 2^63 - 1."""
    total = input_tokens + output_tokens
    if total > MAX_NUMBER:
        raise PayloadError("usage", f"the tokens together cannot exceed 2^63 - 1, got {total}")
    record.input_tokens = input_tokens
    record.output_tokens = output_tokens
    record.total_tokens = total


def set_stated(record: UsageRecord, given: int | None, returned: int | None, total: int | None) -> bool:
    """Set the totals that are stated; False, and quality UNKNOWN, unless both are.

    One that is not stated is what the stated total leaves for it.
    """
    if total is not None:
        if given is None and returned is not None and total >= returned:
            given = total - returned
        elif returned is None and given is not None and total >= given:
            returned = total - given
    if given is None or returned is None:
        record.input_tokens, record.output_tokens = given, returned
        set_unknown(record)
        return False
    set_tokens(record, given, returned)
    return True


def set_modality(record: UsageRecord, **counts: int) -> None:
    """Set the counts by modality, if any of them is not 0."""
    if any(counts.values()):
        modality = record.modality = ModalityTokens()
        for name, value in counts.items():
            setattr(modality, name, value)


def set_unknown(record: UsageRecord) -> None:
    """Mark the counts as unknown: such a record is unpriced, its cost is never zero."""
    record.quality = UsageQuality.UNKNOWN


# The states of answers that are made in the background, until they are there.
_UNDER_WAY = frozenset({"queued", "in_progress"})


def set_unstated(record: UsageRecord, payload: dict[str, object]) -> None:
    """Mark the counts as unknown, and take back the key of what is not done yet.

    Recorded under its id, it would stand in the way of what is billed in the end.
    """
    set_unknown(record)
    if text(payload, "status") in _UNDER_WAY:
        record.idempotency_key = ""


_MODALITIES = ("audio_tokens", "image_tokens", "video_tokens")
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


def cache_writes(details: dict[str, object], path: str) -> tuple[int, int]:
    """All cache writes, and those with the long time to live, from the details of the input."""
    written = count(details, "cache_write_tokens", path) if "cache_write_tokens" in details else 0
    split = details
    if "cache_write_tokens_details" in details:
        split = section(details, "cache_write_tokens_details", path) or details
    if split is details and not ("ttl_12h" in details or "ttl_12h_tokens" in details):
        return written, 0
    short, long = _of_ttl(split, "ttl_30m", path), _of_ttl(split, "ttl_12h", path)
    if details.get("cache_write_tokens") is None:
        return short + long, long
    if short + long > written:
        check_total(f"{path}.cache_write_tokens", written, short + long, "ttl_30m + ttl_12h")
    return written, long


CLAUDE_WRITES = frozenset(
    {
        "cache_creation_input_tokens",
        "cache_creation",
        "cache_creation_tokens",
        "cache_creation_token_details",
    }
)
"""The fields of usage, or of its details, that `claude_writes` reads."""


def claude_writes(details: dict[str, object], path: str, usage: dict[str, object]) -> tuple[int, int]:
    """Cache writes as LiteLLM states them for Claude: in Anthropic's fields, but as a part of the prompt."""
    written = count(usage, "cache_creation_input_tokens", "usage")
    if not written:
        written = count(details, "cache_creation_tokens", path)
    split: dict[str, Any] = {}
    for holder, key in ((details, "cache_creation_token_details"), (usage, "cache_creation")):
        split = split or section(holder, key, path) or {}
    short = count(split, "ephemeral_5m_input_tokens", path) + count(split, "ephemeral_30m_input_tokens", path)
    long = count(split, "ephemeral_1h_input_tokens", path) + count(split, "ephemeral_12h_input_tokens", path)
    return written or short + long, long


def _of_ttl(split: dict[str, object], ttl: str, path: str) -> int:
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
        cached = section(inputs, "cached_tokens_details", input_path) or {}
    # Without a function for the three: most payloads have none, and calls are what this would cost.
    if not (
        inputs.get("audio_tokens")
        or inputs.get("image_tokens")
        or inputs.get("video_tokens")
        or outputs.get("audio_tokens")
        or outputs.get("image_tokens")
        or outputs.get("video_tokens")
        or (cached and any(map(cached.get, _MODALITIES)))
    ):
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
