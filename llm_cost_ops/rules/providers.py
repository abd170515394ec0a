"""The names and hosts that providers go by, and whose prices hold where a provider resells models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

__all__ = ["PROVIDER_FALLBACKS", "canonical_provider", "provider_at", "provider_named", "served_by"]

# What providers are called by SDKs, gateways and frameworks; the catalog's own names are among them.
_ALIASES = {
    alias: provider
    for provider, aliases in {
        "aws": "amazon amazon-bedrock amazon_bedrock aws-bedrock aws.bedrock aws_bedrock bedrock "
        "bedrock_converse",
        "azure": "azure-openai azure.ai.openai azure_ai azure_openai",
        "cohere": "cohere_chat",
        "fireworks": "fireworks_ai",
        "google": "gcp.gemini gcp.vertex_ai gemini google-ai-studio google-vertex google_genai "
        "google_vertexai vertex vertex_ai vertexai",
        "mistral": "mistral_ai mistralai",
        "moonshotai": "moonshot",
        "openai": "text-completion-openai",
        "together": "together-ai together_ai togetherai",
        "voyageai": "voyage",
        "x-ai": "x_ai xai",
    }.items()
    for alias in aliases.split()
}

_HOSTS = {
    "api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "api.mistral.ai": "mistral",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
    "api.groq.com": "groq",
    "api.x.ai": "x-ai",
    "api.deepseek.com": "deepseek",
    "api.perplexity.ai": "perplexity",
    "openrouter.ai": "openrouter",
    "generativelanguage.googleapis.com": "google",
    "aiplatform.googleapis.com": "google",
    # They sell models of others at prices of their own, mostly by OpenAI's API.
    "api.arcee.ai": "arcee",
    "api.avian.io": "avian",
    "api.cerebras.ai": "cerebras",
    "api.deepinfra.com": "deepinfra",
    "api.fireworks.ai": "fireworks",
    "api.minimax.io": "minimax",
    "api.moonshot.ai": "moonshotai",
    "api.moonshot.cn": "moonshotai",
    "api.novita.ai": "novita",
    "api.sambanova.ai": "sambanova",
    "api.together.ai": "together",
    "api.together.xyz": "together",
    "api.voyageai.com": "voyageai",
    "api.z.ai": "zai",
    "inference.baseten.co": "baseten",
    "integrate.api.nvidia.com": "nvidia",
    "open.bigmodel.cn": "zhipuai",
    "router.huggingface.co": "huggingface",
    # Anthropic serves it, by its own models' names and at its own prices.
    "claude.googleapis.com": "anthropic",
}
_SUFFIXES = (
    (".api.openai.com", "openai"),
    (".mistral.ai", "mistral"),
    (".openai.azure.com", "azure"),
    (".services.ai.azure.com", "azure"),
    (".cognitiveservices.azure.com", "azure"),
    ("-aiplatform.googleapis.com", "google"),
    (".rep.googleapis.com", "google"),
    (".amazonaws.com", "aws"),
    (".amazonaws.com.cn", "aws"),
    (".api.aws", "aws"),
)

# Providers that sell the models of others at their makers' prices, when they list none of their own.
PROVIDER_FALLBACKS: Mapping[str, tuple[str, ...]] = {
    "azure": ("openai", "anthropic", "deepseek", "x-ai", "moonshotai"),
    "google": ("anthropic",),
}


@lru_cache(maxsize=1024)
def canonical_provider(name: str) -> str:
    """The one name of a provider: known aliases are folded, any other name is put in lower case.

    Names are kept: of one that no rule has bounded yet, ask `provider_named`.
    """
    return provider_named(name)


def provider_named(name: str) -> str:
    """The same, and nothing is kept: a name may be as long as the file that it is from."""
    lowered = name.strip().lower()
    return _ALIASES.get(lowered, lowered)


def provider_at(host: str) -> str:
    """Who serves a host; "" when it is not known."""
    found = _HOSTS.get(host)
    if found is None:
        if host.startswith("aws-external-anthropic."):
            return "anthropic"
        found = next((provider for suffix, provider in _SUFFIXES if host.endswith(suffix)), "")
    return found


def served_by(stated: str, host: str) -> str:
    """Who serves a call, by what its instrument says: many say openai of all who speak OpenAI's API."""
    provider = provider_named(stated)
    return provider_at(host.lower()) or provider if provider == "openai" else provider
