"""OpenAI's embeddings, transcription, speech, images and realtime responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_cost_ops._gen.messages import Operation
from llm_cost_ops.normalizers.checks import check_record, check_total
from llm_cost_ops.normalizers.details import read_modality
from llm_cost_ops.normalizers.dialects import read_xai_extras
from llm_cost_ops.normalizers.filling import (
    set_identity,
    set_key,
    set_meter,
    set_modality,
    set_model,
    set_stated,
    set_tokens,
    set_unknown,
)
from llm_cost_ops.normalizers.reading import count, counted, duration_ms, has, section, text

if TYPE_CHECKING:
    from llm_cost_ops._gen.messages import UsageRecord

__all__ = ["read_embeddings", "read_images", "read_realtime", "read_speech", "read_transcription"]

NAMES = {
    "input_tokens": "usage.input_tokens",
    "output_tokens": "usage.output_tokens",
    "cached_tokens": "usage.input_token_details.cached_tokens",
    "input_audio_tokens": "usage.input_token_details.audio_tokens",
    "input_image_tokens": "usage.input_token_details.image_tokens",
    "cached_audio_tokens": "usage.input_token_details.cached_tokens_details.audio_tokens",
    "cached_image_tokens": "usage.input_token_details.cached_tokens_details.image_tokens",
}


def read_embeddings(payload: dict[str, object], record: UsageRecord) -> None:
    """Embeddings: prompt_tokens only."""
    record.operation = Operation.EMBEDDINGS
    set_identity(record, payload)
    usage = section(payload, "usage", "usage")
    if usage is None or not (has(usage, "prompt_tokens") or has(usage, "total_tokens")):
        set_unknown(record)
        return
    total = count(usage, "total_tokens", "usage")
    # Voyage and others send the total alone.
    prompt = count(usage, "prompt_tokens", "usage") if has(usage, "prompt_tokens") else total
    output = count(usage, "completion_tokens", "usage")
    if usage.get("total_tokens") is not None:
        check_total("usage.total_tokens", total, prompt + output, "prompt_tokens + completion_tokens")
    set_tokens(record, prompt, output)


def read_transcription(payload: dict[str, object], record: UsageRecord) -> None:
    """Transcriptions, billed by tokens or by the seconds of audio (`meters.audio_ms`)."""
    record.operation = Operation.TRANSCRIPTION
    set_model(record, text(payload, "model"))
    groq = section(payload, "x_groq", "x_groq")
    set_key(record, text(groq, "id") if groq else "")
    usage = section(payload, "usage", "usage")
    if usage is None:
        if payload.get("duration") is None:
            set_unknown(record)
        else:
            set_meter(record, "audio_ms", duration_ms(payload["duration"], "duration"))
    elif usage.get("seconds") is not None:
        set_meter(record, "audio_ms", duration_ms(usage["seconds"], "usage.seconds"))
    else:
        _read_tokens(usage, record)


def read_speech(payload: dict[str, object], record: UsageRecord) -> None:
    """Speech: `usage.characters`, or the tokens of a speech.audio.done event. All output is audio."""
    record.operation = Operation.SPEECH
    set_model(record, text(payload, "model"))
    usage = section(payload, "usage", "usage")
    if usage is not None and usage.get("characters") is not None:
        set_meter(record, "characters", count(usage, "characters", "usage"))
    elif _read_tokens(usage, record):
        set_modality(record, output_audio_tokens=record.output_tokens or 0)


def read_images(payload: dict[str, object], record: UsageRecord) -> None:
    """Images: tokens, output being image tokens unless details say otherwise.

    Models that are billed by the image send no usage: their images are counted (`meters.images`).
    """
    record.operation = Operation.IMAGE
    set_identity(record, payload)
    usage = section(payload, "usage", "usage")
    data = payload.get("data")
    if usage is None and isinstance(data, (list, tuple)):
        set_meter(record, "images", len(data))
    elif _read_tokens(usage, record) and usage is not None:
        images = (record.output_tokens or 0) - record.reasoning_tokens
        details = section(usage, "output_tokens_details", "usage.output_tokens_details")
        if details is not None and details.get("image_tokens") is not None:
            images = count(details, "image_tokens", "usage.output_tokens_details")
        set_modality(
            record,
            input_image_tokens=record.modality.input_image_tokens if record.modality else 0,
            output_image_tokens=images,
        )
        check_record(record, NAMES)


def read_realtime(payload: dict[str, object], record: UsageRecord) -> None:
    """A response of a realtime session, from its response.done event."""
    record.operation = Operation.REALTIME
    set_identity(record, payload)
    usage = section(payload, "usage", "usage")
    if _read_tokens(usage, record) and usage is not None and "billable_audio_seconds" in usage:
        read_xai_extras(usage, record)


def _read_tokens(usage: dict[str, object] | None, record: UsageRecord) -> bool:
    """Token counts with details by modality; False when they are unknown."""
    if usage is None:
        set_unknown(record)
        return False
    total = counted(usage, "total_tokens", "usage")
    stated, spoken = counted(usage, "input_tokens", "usage"), counted(usage, "output_tokens", "usage")
    if not set_stated(record, stated, spoken, total):
        return False
    given, returned = record.input_tokens or 0, record.output_tokens or 0
    if total is not None:
        check_total("usage.total_tokens", total, given + returned, "input_tokens + output_tokens")
    inputs, path = _details(usage, "input")
    outputs, output_path = _details(usage, "output")
    record.cached_tokens = count(inputs, "cached_tokens", path)
    record.reasoning_tokens = count(outputs, "reasoning_tokens", output_path)
    read_modality(inputs, path, outputs, output_path, record)
    check_record(record, NAMES)
    return True


def _details(usage: dict[str, object], side: str) -> tuple[dict[str, object], str]:
    """Audio and realtime say input_token_details, images input_tokens_details."""
    for key in (f"{side}_token_details", f"{side}_tokens_details"):
        found = section(usage, key, f"usage.{key}")
        if found is not None:
            return found, f"usage.{key}"
    return {}, f"usage.{side}_token_details"
