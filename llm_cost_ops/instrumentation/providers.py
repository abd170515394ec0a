"""The API that the path of a request belongs to, and what is known of providers' APIs."""

from __future__ import annotations

import re

__all__ = ["TAKE_STREAM_OPTIONS", "api_of", "bedrock_model", "fetched_of"]

TAKE_STREAM_OPTIONS = frozenset({"azure", "deepseek", "openai", "openrouter", "x-ai"})
"""Providers whose chat completions document `stream_options.include_usage`."""

# The end of the path, of one or two segments -> the API of usage_from_response.
_PATHS = {
    "chat/completions": "openai.chat",
    "completions": "openai.chat",
    "responses": "openai.responses",
    "responses/compact": "openai.responses",
    "decisions": "openai.responses",
    "interactions": "google.interactions",
    "embeddings": "openai.embeddings",
    "images/generations": "openai.images",
    "images/edits": "openai.images",
    "images/variations": "openai.images",
    "audio/transcriptions": "openai.transcription",
    "audio/translations": "openai.transcription",
    "audio/speech": "openai.speech",
    "v1/messages": "anthropic.messages",
    "v1/chat": "cohere.chat",
    "v2/chat": "cohere.chat",
    "v1/embed": "cohere.chat",
    "v2/embed": "cohere.chat",
    "v1/rerank": "cohere.chat",
    "v2/rerank": "cohere.chat",
    "v1/ocr": "mistral.ocr",
}
# By the method of a resource, after a colon.
_VERBS = {
    "rawPredict": "anthropic.messages",
    "streamRawPredict": "anthropic.messages",
    "generateContent": "google.generate",
    "streamGenerateContent": "google.generate",
    "embedContent": "google.generate",
    "batchEmbedContents": "google.generate",
    "predict": "google.generate",
}
# Begins, goes on with or restarts a conversation of Mistral. OpenAI's of the same path only hold messages.
_CONVERSATIONS = re.compile(r"/v1/conversations(?:/[^/]+(?:/restart)?)?$")
# Paths that many servers have.
_OLLAMA = re.compile(r"/api/(?:chat|generate|embed)$")
# Vertex counts tokens by a model of this name.
_COUNTS_TOKENS = "count-tokens:rawPredict"
# Only Anthropic's SDK calls models by such paths: by their names, or by ARNs that say nothing of them.
_CLAUDE_ON_BEDROCK = re.compile(r"anthropic|:(?:application-inference-profile|provisioned-model)/")
_BEDROCK = re.compile(r"/model/(.+)/invoke(?:-with-response-stream)?$")
_LATER = re.compile(r"/(?:responses|(interactions))/[^/]+(?:/cancel)?$")
_RESULTS = re.compile(r"/(?:files/[^/]+/content|batches/[^/]+/results)$")


def api_of(path: str, provider: str = "") -> str:
    """The API of a path; "" when calls of it are not billed.

    The provider, where it is known, tells apart what two of them have at one path.
    """
    if provider == "mistral" and _CONVERSATIONS.search(path):
        return "mistral.chat"
    if provider == "ollama" and _OLLAMA.search(path):
        return "ollama"
    segments = path.rstrip("/").rsplit("/", 2)
    last = segments[-1]
    found = _PATHS.get("/".join(segments[-2:])) or _PATHS.get(last)
    if not found and ":" in last and last != _COUNTS_TOKENS:
        found = _VERBS.get(last.rpartition(":")[2])
    if not found and _CLAUDE_ON_BEDROCK.search(bedrock_model(path)):
        found = "anthropic.messages"
    return found or ""


def bedrock_model(path: str) -> str:
    """The model that a path of Bedrock's InvokeModel names; "" for other paths."""
    found = _BEDROCK.search(path)
    return found[1] if found else ""


def fetched_of(method: str, path: str) -> str:
    """What a request fetches that was made earlier: its API, "batch" for results of a batch, else ""."""
    if method == "GET" and _RESULTS.search(path):
        return "batch"
    found = _LATER.search(path)
    if found is None or method not in ("GET", "POST") or (method == "POST") != path.endswith("/cancel"):
        return ""
    return "google.interactions" if found[1] else "openai.responses"
