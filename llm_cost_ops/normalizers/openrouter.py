"""OpenRouter: models of many makers, and what was charged for each call."""

from __future__ import annotations

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.normalizers.chat import inclusive_output, read_chat, read_gateway_cost
from llm_cost_ops.normalizers.provider import Provider

__all__ = ["PROVIDER"]


def read_openrouter_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """OpenRouter: models carry their maker's prefix, usage.cost is what was charged.

    With a key of one's own (is_byok) the upstream's charge comes on top of OpenRouter's.
    """
    usage = read_chat(payload, record, inclusive_output)
    if usage is not None:
        read_gateway_cost(usage, record)


def _serves(payload: dict[str, object], _usage: dict[str, object]) -> bool:
    response_id = payload.get("id")
    return (type(response_id) is str and response_id.startswith("gen-")) or type(
        payload.get("provider")
    ) is str


PROVIDER = Provider(
    "openrouter",
    {"openrouter.chat": read_openrouter_chat},
    chat=read_openrouter_chat,
    serves={"openai.chat": _serves},
)
