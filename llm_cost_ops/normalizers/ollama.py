"""Ollama's own API: generate, chat and embed. Durations aside, two counts stand at the top."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_cost_ops._gen.messages import Operation
from llm_cost_ops.normalizers.filling import set_model, set_stated
from llm_cost_ops.normalizers.reading import counted, created_at, has, text

if TYPE_CHECKING:
    from llm_cost_ops._gen.messages import UsageRecord

__all__ = ["read_ollama"]


def read_ollama(payload: dict[str, object], record: UsageRecord) -> None:
    """A response, or the last event of a stream; the prompt's count is left out when it was cached."""
    is_embedding = has(payload, "embeddings") or has(payload, "embedding")
    record.operation = Operation.EMBEDDINGS if is_embedding else Operation.CHAT
    set_model(record, text(payload, "model"))
    record.timestamp = created_at(payload.get("created_at"))
    returned = counted(payload, "eval_count", "")
    if is_embedding and returned is None:
        returned = 0
    set_stated(record, counted(payload, "prompt_eval_count", ""), returned, None)
