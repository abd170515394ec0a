"""All providers: a new one is a file with its descriptor and a line here."""

from __future__ import annotations

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
from llm_cost_ops.normalizers.provider import Normalizer, Provider

__all__ = ["APIS", "DIALECTS", "NAMES", "PROVIDERS", "SHARED_APIS", "UNIQUE_IDS"]

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
UNIQUE_IDS = frozenset(provider.name for provider in PROVIDERS if provider.name and provider.unique_ids)
