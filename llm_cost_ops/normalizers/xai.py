"""xAI: reasoning stands beside the completion, tools and stated costs in its own words."""

from __future__ import annotations

from decimal import Decimal

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.normalizers.chat import read_chat, xai_output
from llm_cost_ops.normalizers.payload import count, duration_ms, has, shallow
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import set_meter

__all__ = ["PROVIDER", "read_xai_extras"]

# xAI states costs in ticks of 10^-10 US dollars.
_TICK = Decimal("1e-10")
_XAI_TOOLS = (
    ("web_search_calls", "web_searches"),
    ("x_search_calls", "social_searches"),
    ("code_interpreter_calls", "code_executions"),
    ("file_search_calls", "file_searches"),
    ("document_search_calls", "file_searches"),
    ("attachment_search_calls", "attachment_searches"),
    ("image_generation_calls", "image_generation_calls"),
)
# Billed by their tokens alone.
_XAI_FREE = frozenset(("mcp_calls", "view_image_calls", "view_x_video_calls"))
_XAI_NAMES = frozenset(key for key, _ in _XAI_TOOLS) | _XAI_FREE
# The tools that a response of the gRPC API lists, one for each call; viewing images and MCP are free.
_XAI_CALLS = {
    "WEB_SEARCH": "web_searches",
    "X_SEARCH": "social_searches",
    "CODE_EXECUTION": "code_executions",
    "COLLECTIONS_SEARCH": "file_searches",
    "ATTACHMENT_SEARCH": "attachment_searches",
    "IMAGE_GENERATION": "image_generation_calls",
}


def read_xai_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """The chat of xAI: the total tells whether reasoning is in the completion. See also `read_xai_extras`."""
    read_chat(payload, record, xai_output)


def read_xai_extras(usage: dict[str, object], record: UsageRecord) -> None:
    """Server-side tool calls and the stated cost of xAI's usage objects."""
    ticks = usage.get("cost_in_usd_ticks")
    if ticks is not None:
        record.reported_cost = count(usage, "cost_in_usd_ticks", "usage") * _TICK
    # Live Search, which ended in January 2026, was billed by the source.
    set_meter(record, "search_sources", count(usage, "num_sources_used", "usage"))
    seconds = usage.get("billable_audio_seconds")
    if seconds is not None:
        # Voice is billed by the second alone.
        set_meter(record, "audio_ms", duration_ms(seconds, "usage.billable_audio_seconds"))
        record.input_tokens = record.output_tokens = record.total_tokens = record.modality = None
        record.cached_tokens = record.reasoning_tokens = 0
    path = "usage.server_side_tool_usage_details"
    details = shallow(usage.get("server_side_tool_usage_details"))
    if details is not None:
        for key, meter in _XAI_TOOLS:
            set_meter(record, meter, count(details, key, path))
        for key in details:
            # A tool that is not known here: without a price, the cost is not the whole.
            if key.endswith("_calls") and key not in _XAI_NAMES:
                set_meter(record, key, count(details, key, path))
        return
    used = usage.get("server_side_tools_used")
    for tool in used if isinstance(used, (list, tuple)) else ():
        name = tool if isinstance(tool, str) else getattr(tool, "name", "")
        meter = _XAI_CALLS.get(str(name).removeprefix("SERVER_SIDE_TOOL_"), "")
        if meter:
            set_meter(record, meter, 1)


def _serves(_payload: dict[str, object], usage: dict[str, object]) -> bool:
    return has(usage, "cost_in_usd_ticks") or has(usage, "num_sources_used")


PROVIDER = Provider(
    "x-ai",
    {"xai.chat": read_xai_chat},
    chat=read_xai_chat,
    models=("grok-",),
    serves={"openai.chat": _serves, "openai.responses": _serves, "openai.embeddings": _serves},
)
