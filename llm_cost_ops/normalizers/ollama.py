"""Ollama's own API: generate, chat and embed. Durations aside, two counts stand at the top."""

from __future__ import annotations

from llm_cost_ops._gen.messages import Operation, UsageRecord
from llm_cost_ops.normalizers.payload import counted, created_at, has, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import set_model, set_stated

__all__ = ["PROVIDER"]


def read_ollama(payload: dict[str, object], record: UsageRecord) -> None:
    """A response, or the last event of a stream; the prompt's count is left out when it was cached."""
    is_embedding = has(payload, "embeddings") or has(payload, "embedding")
    record.operation = Operation.EMBEDDINGS if is_embedding else Operation.CHAT
    set_model(record, text(payload, "model"))
    record.timestamp = created_at(payload.get("created_at"))
    returned = counted(payload, "eval_count")
    if is_embedding and returned is None:
        returned = 0
    set_stated(record, counted(payload, "prompt_eval_count"), returned, None)


def _detect(payload: dict[str, object], _usage: dict[str, object] | None) -> str:
    return "ollama" if has(payload, "prompt_eval_count") or has(payload, "eval_count") else ""


# Ollama picks one of a thousand ids.
PROVIDER = Provider("ollama", {"ollama": read_ollama}, detect=_detect, unique_ids=False)
