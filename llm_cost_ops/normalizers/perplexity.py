"""Perplexity: reasoning and citations beside the totals, searches, request fees and stated costs."""

from __future__ import annotations

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.normalizers.chat import inclusive_output, read_chat
from llm_cost_ops.normalizers.payload import count, money, section, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import set_meter

__all__ = ["PROVIDER"]

# Sonar models whose price has a fee per request; that fee pays for their searches.
_FEE_PER_REQUEST = frozenset({"sonar", "sonar-pro", "sonar-reasoning", "sonar-reasoning-pro"})


def _perplexity_output(prompt: int, completion: int, reasoning: int, total: int | None) -> tuple[int, int]:
    """Perplexity's reasoning is billed beside completion_tokens, and is in no total."""
    if total != prompt + completion + reasoning:
        inclusive_output(prompt, completion, reasoning, total)
    return completion + reasoning, reasoning


def read_perplexity_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """Perplexity: reasoning and citation tokens beside the total, searches, request fee, stated cost."""
    usage = read_chat(payload, record, _perplexity_output)
    if usage is None:
        return
    set_meter(record, "citation_tokens", count(usage, "citation_tokens", "usage"))
    if record.model_id.removeprefix("perplexity/") in _FEE_PER_REQUEST:
        set_meter(record, "requests", 1)
        size = text(usage, "search_context_size")
        if size in ("medium", "high"):
            # The fee is that of the default, low context; more context costs more on top.
            set_meter(record, f"{size}_context_requests", 1)
    else:
        set_meter(record, "web_searches", count(usage, "num_search_queries", "usage"))
    cost = section(usage, "cost", "usage")
    if cost is not None:
        record.reported_cost = money(cost.get("total_cost"), "usage.cost.total_cost")


def _serves(payload: dict[str, object], usage: dict[str, object]) -> bool:
    has_searches = "search_context_size" in usage or "search_results" in payload
    return has_searches or isinstance(usage.get("cost"), dict)


PROVIDER = Provider(
    "perplexity",
    {"perplexity.chat": read_perplexity_chat},
    chat=read_perplexity_chat,
    models=("sonar",),
    serves={"openai.chat": _serves},
)
