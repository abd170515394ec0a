"""Session logs of coding assistants: Claude Code and Codex."""

from __future__ import annotations

from typing import Any

from llm_cost_ops.imports.values import Format, Found, Part, State, count, made, moment, nested, text
from llm_cost_ops.normalizers import usage_from_response
from llm_cost_ops.types import Operation

__all__ = ["CLAUDE_CODE", "CODEX"]

_CLAUDE_TYPES = (
    "assistant",
    "user",
    "system",
    "summary",
    "progress",
    "file-history-snapshot",
    "queue-operation",
)


def _is_claude_code(obj: dict[str, object]) -> bool:
    if obj.get("type") not in _CLAUDE_TYPES:
        return False
    if obj["type"] == "assistant" and nested(nested(obj, "message"), "usage"):
        return True
    return any(name in obj for name in ("sessionId", "leafUuid", "parentUuid", "messageId"))


def _read_claude_code(obj: dict[str, object], _state: State) -> Found:
    """A line is a piece of a message: all of a message have its id, the last has its final counts."""
    message = nested(obj, "message")
    usage = nested(message, "usage")
    if obj.get("type") != "assistant" or not usage or message.get("model") == "<synthetic>":
        return
    payload = {name: message[name] for name in ("id", "model") if message.get(name)}
    record = usage_from_response({**payload, "type": "message", "usage": usage}, api="anthropic.messages")
    record.timestamp = moment(obj.get("timestamp"))
    record.session_id = text(obj, "sessionId")
    record.operation = Operation.CHAT
    record.observation = True
    record.source = "claude-code"
    if not record.idempotency_key and text(obj, "requestId"):
        record.idempotency_key = f"{record.provider}:{text(obj, 'requestId')}"
    yield Part("", record)


_CODEX_SUMS = (
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_output_tokens",
    "total_tokens",
)
_CODEX_TYPES = ("session_meta", "turn_context", "event_msg", "response_item", "compacted")


def _is_codex(obj: dict[str, object]) -> bool:
    return obj.get("type") in _CODEX_TYPES and isinstance(obj.get("payload"), dict)


def _read_codex(obj: dict[str, object], state: State) -> Found:
    """Session and model come on separate lines; each count comes with the session's sum so far.

    The same sum as before is a repetition of the same count. Forks and subagents begin with the lines of the
    session that they come from, its session_meta among them: a call has one key in all of these files.
    """
    payload = nested(obj, "payload")
    if obj["type"] == "session_meta":
        if text(payload, "id") != state.get("session") and not text(payload, "forked_from_id"):
            # Another log in the same stream. A fork goes on with the sum that it copied.
            state.pop("total", None)
        state["session"] = text(payload, "id")
        state["provider"] = text(payload, "model_provider") or "openai"
    elif obj["type"] == "turn_context":
        state["model"] = text(payload, "model")
    if obj["type"] != "event_msg" or payload.get("type") != "token_count":
        return
    info = nested(payload, "info")
    total = nested(info, "total_token_usage")
    before: dict[str, Any] = state.get("total", {})
    last = nested(info, "last_token_usage")
    if not (total or last) or (total and total == before):
        return
    state["total"] = total
    # If only sums are given, a call is the difference; a sum that became smaller has started again.
    if not last:
        names = [name for name in total if isinstance(total[name], int)]
        anew = any(total[name] < before.get(name, 0) for name in names)
        last = {name: total[name] - (0 if anew else before.get(name, 0)) for name in names}
    session = state.get("session", "")
    sums = ".".join(str(total.get(name, "")) for name in _CODEX_SUMS)
    when = moment(obj.get("timestamp"))
    record = made(
        provider=state.get("provider", "openai"),
        model_id=state.get("model", ""),
        input_tokens=count(last, "input_tokens"),
        output_tokens=count(last, "output_tokens"),
        cached=count(last, "cached_input_tokens"),
        written=count(last, "cache_write_input_tokens"),
        reasoning_tokens=count(last, "reasoning_output_tokens"),
        timestamp=when,
        session_id=session,
        idempotency_key=f"codex:{session}:{sums}" if session and total else None,
        operation=Operation.CHAT,
        observation=True,
        source="codex",
    )
    yield Part("", record)


CLAUDE_CODE = Format(
    "Claude Code session log", _is_claude_code, _read_claude_code, last_counts=True, is_log=True
)
CODEX = Format("Codex session log", _is_codex, _read_codex, is_log=True)
