"""Groq: compound systems are billed by the models that they used."""

from __future__ import annotations

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.normalizers.chat import inclusive_output, read_chat
from llm_cost_ops.normalizers.payload import as_mapping, items, section, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import set_meter

__all__ = ["PROVIDER"]


def read_groq_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """Groq: a compound system is billed by the models that it used, which usage_breakdown names."""
    read_chat(payload, record, inclusive_output)
    if "choices" in payload:
        _count_tools(payload, record)
    breakdown = section(payload, "usage_breakdown")
    if breakdown is None:
        return
    models = items(breakdown, "models", "usage_breakdown")
    if len(models) == 1:
        if text(models[0], "model") == record.model_id:
            return
        record.requested_model_id, record.model_id = record.model_id, text(models[0], "model")
    elif models:
        set_meter(record, "other_model_calls", len(models))


def _count_tools(payload: dict[str, object], record: UsageRecord) -> None:
    """The tools that Groq ran, which are billed by the call or by the time beside the tokens."""
    streamed = section(payload, "executed_tools")
    tools = [] if streamed is None else [as_mapping(tool, "executed_tools") for tool in streamed.values()]
    for choice in items(payload, "choices"):
        said = section(choice, "message", "choices") or {}
        tools += items(said, "executed_tools", "choices.message")
    for tool in tools:
        set_meter(record, _TOOLS.get(text(tool, "type"), "tool_calls"), 1)


_TOOLS = {
    "search": "web_searches",
    "browser_search": "web_searches",
    "browser.search": "web_searches",
    "visit": "website_visits",
    "browser.open": "website_visits",
    "python": "code_executions",
    "code_interpreter": "code_executions",
}


def _serves(payload: dict[str, object], _usage: dict[str, object]) -> bool:
    return "x_groq" in payload


PROVIDER = Provider(
    "groq", {"groq.chat": read_groq_chat}, chat=read_groq_chat, serves={"openai.chat": _serves}
)
