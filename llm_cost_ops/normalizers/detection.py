"""Telling from a payload's shape which API it comes from, and which provider served it."""

from __future__ import annotations

from llm_cost_ops.normalizers.errors import PayloadError
from llm_cost_ops.normalizers.opentelemetry import is_span
from llm_cost_ops.normalizers.reading import has, section, text
from llm_cost_ops.normalizers.vercel import is_vercel

__all__ = ["detect_api", "detect_provider"]

_BY_OBJECT = {
    "chat.completion": "openai.chat",
    "chat.completion.chunk": "openai.chat",
    "text_completion": "openai.chat",
    "response": "openai.responses",
    "realtime.response": "openai.realtime",
    "interaction": "google.interactions",
}
_ANTHROPIC_KEYS = (
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "server_tool_use",
    "cache_creation",
    "inference_geo",
    "iterations",
)
_INVOKE_KEYS = (
    "prompt_token_count",
    "generation_token_count",
    "inputTextTokenCount",
    "amazon-bedrock-invocationMetrics",
    "x-amzn-bedrock-input-token-count",
    "X-Amzn-Bedrock-Input-Token-Count",
)
_IMAGE_MODELS = ("gpt-image-", "chatgpt-image-", "dall-e-")
_PLAIN = (str, bytes, int, float, bool, list, tuple)
_BY_MODEL = (
    (("gpt-oss",), ""),
    (
        ("gpt-", "o1", "o3", "o4-", "chatgpt-", "text-embedding-", "ft:gpt-", "whisper-1", "tts-1", "dall-e"),
        "openai",
    ),
    (("claude-",), "anthropic"),
    (("gemini-", "models/gemini-"), "google"),
    (("grok-",), "x-ai"),
    (("deepseek-",), "deepseek"),
    (("mistral-", "ministral-", "codestral-", "magistral-", "devstral-", "pixtral-", "voxtral-"), "mistral"),
    (("sonar",), "perplexity"),
    (("command-",), "cohere"),
)


def detect_api(payload: dict[str, object]) -> str:
    """The name of the API whose shape this is; "" when it has none that is known."""
    found = _BY_OBJECT.get(text(payload, "object"))
    if found is not None:
        return found
    if has(payload, "prompt_eval_count") or has(payload, "eval_count"):
        return "ollama"
    if "usageMetadata" in payload or "usage_metadata" in payload:
        return "google.generate"
    if "usage_info" in payload:
        return "mistral.ocr"
    usage = section(payload, "usage", "usage")
    if usage is not None:
        return _by_usage(payload, usage)
    if is_span(payload):
        return "opentelemetry"
    return _without_usage(payload)


def _by_usage(payload: dict[str, object], usage: dict[str, object]) -> str:
    if None in usage.values():
        # Objects of SDKs have every key: one whose value is null tells nothing.
        usage = {key: value for key, value in usage.items() if value is not None} or usage
    if "prompt_tokens" in usage or "completion_tokens" in usage or "prompt_audio_seconds" in usage:
        # An embedding list has neither choices nor completion tokens; Mistral's transcriptions have text.
        is_list = payload.get("object") == "list" or "data" in payload or "embeddings" in payload
        return "openai.embeddings" if is_list and "choices" not in payload else "openai.chat"
    if "total_input_tokens" in usage:
        return "google.interactions"
    if is_vercel(usage):
        return "vercel"
    if "inputTokens" in usage or "outputTokens" in usage:
        return "bedrock.converse"
    if "billed_units" in usage or "tokens" in usage:
        return "cohere.chat"
    if payload.get("type") == "message" or any(key in usage for key in _ANTHROPIC_KEYS):
        return "anthropic.messages"
    if usage.get("type") in ("tokens", "duration") or "seconds" in usage:
        return "openai.transcription"
    if text(payload, "type") == "speech.audio.done" or set(usage) == {"characters"}:
        return "openai.speech"
    if "input_tokens" not in usage and "output_tokens" not in usage:
        return "openai.embeddings" if set(usage) == {"total_tokens"} else "generic"
    if "output" in payload or ("output_tokens_details" in usage and "data" not in payload):
        return "openai.responses"
    if "data" in payload or "b64_json" in payload:
        return "openai.images"
    if "input_token_details" in usage:
        return "openai.realtime"
    details = section(usage, "input_tokens_details", "usage.input_tokens_details") or {}
    is_image = has(details, "image_tokens") or text(payload, "model").startswith(_IMAGE_MODELS)
    return "openai.images" if is_image else "generic"


def _without_usage(payload: dict[str, object]) -> str:
    meta = None if type(payload.get("meta")) in _PLAIN else section(payload, "meta", "meta")
    if meta is not None and "billed_units" in meta:
        return "cohere.chat"
    if _is_invoke(payload):
        return "bedrock.invoke"
    if payload.get("type") == "message":
        return "anthropic.messages"
    if "choices" in payload:
        return "openai.chat"
    if "candidates" in payload or "modelVersion" in payload:
        return "google.generate"
    if "duration" in payload and "text" in payload:
        return "openai.transcription"
    if "created" in payload and "data" in payload:
        return "openai.images"
    return "bedrock.converse" if "stopReason" in payload else ""


def _is_invoke(payload: dict[str, object]) -> bool:
    """Whether Bedrock's InvokeModel answered: the counts of Llama or Titan, or those in its headers."""
    if any(key in payload for key in _INVOKE_KEYS):
        return True
    metadata = payload.get("ResponseMetadata")
    return isinstance(metadata, dict) and "body" in payload


def detect_provider(payload: dict[str, object], api: str) -> str:
    """Who served an API that several providers share; "" when nothing tells."""
    if api == "anthropic.messages":
        response_id = text(payload, "id")
        if response_id.startswith("msg_bdrk_"):
            return "aws"
        return "google" if response_id.startswith("msg_vrtx_") else "anthropic"
    usage = payload.get("usage")
    if isinstance(usage, dict) and ("cost_in_usd_ticks" in usage or "num_sources_used" in usage):
        return "x-ai"
    if api == "openai.chat":
        found = _chat_provider(payload, usage if isinstance(usage, dict) else {})
        if found:
            return found
    return _by_model(text(payload, "model"))


def _chat_provider(payload: dict[str, object], usage: dict[str, object]) -> str:
    if "x_groq" in payload:
        return "groq"
    if text(payload, "id").startswith("gen-") or type(payload.get("provider")) is str:
        return "openrouter"
    if isinstance(usage.get("cost"), dict) or "search_context_size" in usage or "search_results" in payload:
        return "perplexity"
    if "prompt_filter_results" in payload:
        return "azure"
    choices = payload.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return "azure" if "content_filter_results" in choices[0] else ""
    return ""


def _by_model(model: str) -> str:
    lowered = model.lower()
    for prefixes, provider in _BY_MODEL:
        if lowered.startswith(prefixes):
            return provider
    return ""


def refuse_errors(payload: dict[str, object]) -> None:
    """Raise PayloadError for an error response, which has no usage to record."""
    error = payload.get("error")
    if error and "usage" not in payload:
        detail = error.get("message") if isinstance(error, dict) else error
        raise PayloadError("error", f"this is an error response: {detail!s:.200}")
