"""The names that providers go by, and whose prices hold where a provider resells models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

__all__ = ["PROVIDER_FALLBACKS", "canonical_provider"]

_ALIASES = {
    "vertex": "google",
    "vertexai": "google",
    "vertex_ai": "google",
    "gemini": "google",
    "gcp.gemini": "google",
    "gcp.vertex_ai": "google",
    "azure_openai": "azure",
    "azure.ai.openai": "azure",
    "bedrock": "aws",
    "aws_bedrock": "aws",
    "aws.bedrock": "aws",
    "mistralai": "mistral",
    "mistral_ai": "mistral",
    "xai": "x-ai",
    "x_ai": "x-ai",
    "cohere_chat": "cohere",
}

# Providers that sell the models of others at their makers' prices, when they list none of their own.
PROVIDER_FALLBACKS: Mapping[str, tuple[str, ...]] = {
    "azure": ("openai", "anthropic", "deepseek", "x-ai", "moonshotai"),
    "google": ("anthropic",),
}


@lru_cache(maxsize=1024)
def canonical_provider(name: str) -> str:
    """The one name of a provider: known aliases are folded, any other name is put in lower case."""
    lowered = name.strip().lower()
    return _ALIASES.get(lowered, lowered)
