"""Bodies of responses that several tests build on."""

from __future__ import annotations

from types import SimpleNamespace

__all__ = ["RESPONSE", "USAGE", "chat", "objects"]

USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4},
}
RESPONSE = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1793534400,
    "model": "gpt-5.4",
    "usage": USAGE,
}


def chat(prompt, completion, total=None, **usage):
    total = {} if total is None else {"total_tokens": total}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1793534400,
        "model": "gpt-5.4",
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **total, **usage},
    }


def objects(value):
    """A body as an SDK has it: objects with attributes in place of dicts."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: objects(item) for key, item in value.items()})
    return [objects(item) for item in value] if isinstance(value, list) else value
