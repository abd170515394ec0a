"""Mistral: chat, transcription and OCR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_cost_ops._gen.messages import Operation
from llm_cost_ops.normalizers.chat import inclusive_output, read_chat
from llm_cost_ops.normalizers.payload import count, duration_ms, section, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import set_key, set_meter, set_model, set_unknown

if TYPE_CHECKING:
    from llm_cost_ops._gen.messages import UsageRecord

__all__ = ["PROVIDER"]


def read_mistral_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """Chat and transcriptions; audio is billed by its length (`meters.audio_ms`).

    The tokens that audio is turned into are in total_tokens only, and are not billed as tokens.
    """
    usage = section(payload, "usage", "usage") or {}
    seconds = usage.get("prompt_audio_seconds")
    audio = isinstance(seconds, (int, float)) and seconds > 0

    def rule(prompt: int, completion: int, reasoning: int, total: int | None) -> tuple[int, int]:
        if audio and total is not None and total > prompt + completion:
            return completion, reasoning
        return inclusive_output(prompt, completion, reasoning, total)

    read_chat(payload, record, rule)
    if "text" in payload and "choices" not in payload:
        record.operation = Operation.TRANSCRIPTION
        if audio:
            # Billed by the time of audio alone.
            record.input_tokens = record.output_tokens = record.total_tokens = None
    if audio or (isinstance(seconds, (int, float)) and seconds < 0):
        set_meter(record, "audio_ms", duration_ms(seconds, "usage.prompt_audio_seconds"))


def read_mistral_ocr(payload: dict[str, object], record: UsageRecord) -> None:
    """OCR: pages, and annotated pages where the response carries an annotation of the document."""
    record.operation = Operation.OCR
    set_model(record, text(payload, "model"))
    set_key(record, text(payload, "id"))
    usage = section(payload, "usage_info", "usage_info")
    if usage is None or usage.get("pages_processed") is None:
        set_unknown(record)
        return
    pages = count(usage, "pages_processed", "usage_info")
    annotated = payload.get("document_annotation")
    set_meter(record, "annotated_pages" if isinstance(annotated, str) and annotated else "pages", pages)


def _detect(payload: dict[str, object], _usage: dict[str, object] | None) -> str:
    return "mistral.ocr" if "usage_info" in payload else ""


PROVIDER = Provider(
    "mistral",
    {"mistral.chat": read_mistral_chat, "mistral.ocr": read_mistral_ocr},
    chat=read_mistral_chat,
    models=("mistral-", "ministral-", "codestral-", "magistral-", "devstral-", "pixtral-", "voxtral-"),
    detect=_detect,
)
