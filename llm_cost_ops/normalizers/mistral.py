"""Mistral: chat, transcription and OCR."""

from __future__ import annotations

from llm_cost_ops._gen.messages import Operation, UsageQuality, UsageRecord
from llm_cost_ops.normalizers.chat import inclusive_output, read_chat
from llm_cost_ops.normalizers.payload import count, counted, duration_ms, has, items, section, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import set_key, set_meter, set_model, set_tier, set_unknown

__all__ = ["PROVIDER"]

_OF_CONVERSATIONS = frozenset(("connector_tokens", "connectors"))
# The built-in tools of conversations, each call of which is billed, and what they count as.
_CONNECTORS = {
    "web_search": "web_searches",
    "web_search_premium": "premium_web_searches",
    "code_interpreter": "code_executions",
    "image_generation": "image_generation_calls",
    "document_library": "file_searches",
}


def read_mistral_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """Chat and transcriptions; audio is billed by its length (`meters.audio_ms`).

    The tokens that audio is turned into are in total_tokens only, and are not billed as tokens.
    """
    usage = section(payload, "usage") or {}
    if "outputs" in payload or not _OF_CONVERSATIONS.isdisjoint(usage):
        outputs = items(payload, "outputs")
        models = [model for output in outputs if (model := text(output, "model"))]
        set_model(record, models[0] if models else "")
        if len(set(models)) > 1:
            # One agent handed over to another, and nothing says which tokens were of which model.
            record.quality = UsageQuality.ESTIMATED
        usage = _with_connectors(usage, outputs, record)
        payload = {**payload, "usage": usage} if usage else payload
    set_tier(record, text(usage, "service_tier"))
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


def _with_connectors(
    usage: dict[str, object], outputs: list[dict[str, object]], record: UsageRecord
) -> dict[str, object]:
    """The usage with the tokens that tools brought in as part of the prompt; their calls are counted.

    They are stated beside the prompt, and are in the total.
    """
    tokens = count(usage, "connector_tokens", "usage")
    calls = section(usage, "connectors", "usage") or {}
    if not calls:
        run = [text(output, "name") for output in outputs if text(output, "type") == "tool.execution"]
        calls = {name: run.count(name) for name in run}
    for name in calls:
        set_meter(record, _CONNECTORS.get(name, "connector_calls"), count(calls, name, "usage.connectors"))
    if not tokens:
        return usage
    if not calls:
        set_meter(record, "connector_calls", 1)
    prompt, completion = count(usage, "prompt_tokens", "usage"), count(usage, "completion_tokens", "usage")
    if counted(usage, "total_tokens", "usage") == prompt + completion:
        return usage
    return {**usage, "prompt_tokens": prompt + tokens}


def read_mistral_ocr(payload: dict[str, object], record: UsageRecord) -> None:
    """OCR: pages, and annotated pages where the document or a picture in it was annotated."""
    record.operation = Operation.OCR
    set_model(record, text(payload, "model"))
    set_key(record, text(payload, "id"))
    usage = section(payload, "usage_info")
    if usage is None or usage.get("pages_processed") is None:
        set_unknown(record)
        return
    pages = count(usage, "pages_processed", "usage_info")
    set_meter(record, "annotated_pages" if _is_annotated(payload) else "pages", pages)


def _is_annotated(payload: dict[str, object]) -> bool:
    """Whether the document, or a picture in it, was annotated: the pages of such a call cost more."""
    return has(payload, "document_annotation") or any(
        has(image, "image_annotation")
        for page in items(payload, "pages")
        for image in items(page, "images", "pages")
    )


def _serves(payload: dict[str, object], usage: dict[str, object]) -> bool:
    return text(payload, "object") == "conversation.response" or not _OF_CONVERSATIONS.isdisjoint(usage)


def _detect(payload: dict[str, object], _usage: dict[str, object] | None) -> str:
    return "mistral.ocr" if "usage_info" in payload else ""


PROVIDER = Provider(
    "mistral",
    {"mistral.chat": read_mistral_chat, "mistral.ocr": read_mistral_ocr},
    chat=read_mistral_chat,
    serves={"openai.chat": _serves},
    models=("mistral-", "ministral-", "codestral-", "magistral-", "devstral-", "pixtral-", "voxtral-"),
    detect=_detect,
)
