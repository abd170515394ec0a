"""All providers, and how to tell their answers apart: a new one is a file with its descriptor and a line."""

from __future__ import annotations

from functools import lru_cache

from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers import (
    anthropic,
    aws,
    cohere,
    deepseek,
    generic,
    google,
    groq,
    mistral,
    ollama,
    openai,
    openrouter,
    opentelemetry,
    perplexity,
    vercel,
    xai,
)
from llm_cost_ops.normalizers.payload import section, text
from llm_cost_ops.normalizers.provider import Normalizer, Provider

__all__ = [
    "APIS",
    "DIALECTS",
    "NAMES",
    "PROVIDERS",
    "SHARED_APIS",
    "UNIQUE_IDS",
    "detect_api",
    "detect_provider",
    "is_random",
    "refuse_errors",
]

# In the order in which their detectors and marks are asked.
PROVIDERS: tuple[Provider, ...] = (
    anthropic.PROVIDER,
    google.PROVIDER,
    # Before Bedrock, which has the same two names of its totals.
    vercel.PROVIDER,
    aws.PROVIDER,
    ollama.PROVIDER,
    mistral.PROVIDER,
    cohere.PROVIDER,
    openai.PROVIDER,
    xai.PROVIDER,
    groq.PROVIDER,
    openrouter.PROVIDER,
    perplexity.PROVIDER,
    openai.AZURE,
    deepseek.PROVIDER,
    opentelemetry.PROVIDER,
    generic.PROVIDER,
)
NAMES = frozenset(provider.name for provider in PROVIDERS if provider.name)
# Each API: who serves it ("" where that must be stated or found), and its normalizer.
APIS: dict[str, tuple[str, Normalizer]] = {
    api: (provider.name, normalizer) for provider in PROVIDERS for api, normalizer in provider.apis.items()
}
# How a provider speaks the chat API that OpenAI defined.
DIALECTS = {provider.name: provider.chat for provider in PROVIDERS if provider.chat is not None}
SHARED_APIS = frozenset(api for provider in PROVIDERS for api in provider.shared)
# They give no id twice. Servers that people run themselves count from 0 after each start.
UNIQUE_IDS = frozenset(provider.name for provider in PROVIDERS if provider.name and provider.unique_ids)

_BY_OBJECT = {value: api for provider in PROVIDERS for value, api in provider.objects.items()}
_DETECTORS = tuple(provider.detect for provider in PROVIDERS if provider.detect is not None)
_MARKS = {
    api: tuple((provider.serves[api], provider.name) for provider in PROVIDERS if api in provider.serves)
    for api in SHARED_APIS
}
_MAX_NAME = 255
# Models with open weights: anybody may serve them, so that the prefix says nothing.
_OPEN_WEIGHTS = ("gpt-oss",)
_BY_MODEL = tuple((provider.models, provider.name) for provider in PROVIDERS if provider.models)


def detect_api(payload: dict[str, object]) -> str:
    """The name of the API whose shape this is; "" when it has none that is known."""
    found = _BY_OBJECT.get(text(payload, "object"))
    if found is not None:
        return found
    usage = section(payload, "usage")
    if usage is not None:
        if None in usage.values():
            # Objects of SDKs have every key: one whose value is null says nothing.
            usage = {key: value for key, value in usage.items() if value is not None} or usage
        if "prompt_tokens" in usage or "completion_tokens" in usage or "prompt_audio_seconds" in usage:
            # An embedding list has neither choices nor completion tokens; Mistral's transcriptions have text.
            is_list = payload.get("object") == "list" or "data" in payload or "embeddings" in payload
            return "openai.embeddings" if is_list and "choices" not in payload else "openai.chat"
    for detector in _DETECTORS:
        found = detector(payload, usage)
        if found:
            return found
    return "" if usage is None else "generic"


def detect_provider(payload: dict[str, object], api: str) -> str:
    """Who served an API that several providers share; "" when nothing tells."""
    usage = payload.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    for mark, provider in _MARKS[api]:
        if mark(payload, counts):
            return provider
    if api == "anthropic.messages":
        return "anthropic"
    model = text(payload, "model")
    return _provider_of(model if len(model) <= _MAX_NAME else model[:_MAX_NAME])


# A program asks few models, and each of them many times.
@lru_cache(maxsize=1024)
def _provider_of(model: str) -> str:
    lowered = model.lower()
    if not lowered.startswith(_OPEN_WEIGHTS):
        for prefixes, provider in _BY_MODEL:
            if lowered.startswith(prefixes):
                return provider
    return ""


def is_random(response_id: str) -> bool:
    """Whether an id is long and random enough for a UUID, so that no two calls share it.

    Only such ids are taken of a provider that is not known to give unique ones: Ollama picks one of a
    thousand, lmdeploy counts up.
    """
    tail = response_id.replace("-", "")[-24:]
    return len(tail) == 24 and len(set(tail)) >= 8 and not tail.isdigit()


def refuse_errors(payload: dict[str, object]) -> None:
    """Raise PayloadError for an error response, which has no usage to record."""
    error = payload.get("error")
    if error and "usage" not in payload:
        detail = error.get("message") if isinstance(error, dict) else error
        raise PayloadError("error", f"this is an error response: {detail!s:.200}")
