"""Bodies of responses that several tests build on."""

from __future__ import annotations

__all__ = ["chat"]


def chat(prompt, completion, total=None, **usage):
    total = {} if total is None else {"total_tokens": total}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1793534400,
        "model": "gpt-5.4",
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **total, **usage},
    }
