"""DeepSeek: cache hits and misses make the prompt."""

from __future__ import annotations

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.chat import NAMES, inclusive_output, read_chat
from llm_cost_ops.normalizers.payload import count
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import check_record

__all__ = ["PROVIDER"]


def read_deepseek_chat(payload: dict[str, object], record: UsageRecord) -> None:
    """DeepSeek: prompt_cache_hit_tokens are the cache reads, hits and misses make the prompt."""
    usage = read_chat(payload, record, inclusive_output)
    if usage is None or usage.get("prompt_cache_hit_tokens") is None:
        return
    hits = count(usage, "prompt_cache_hit_tokens", "usage")
    if record.cached_tokens not in (0, hits):
        raise PayloadError(
            "usage.prompt_cache_hit_tokens",
            f"is {hits}, but {NAMES['cached_tokens']} is {record.cached_tokens}",
        )
    record.cached_tokens = hits
    if usage.get("prompt_cache_miss_tokens") is not None:
        misses = count(usage, "prompt_cache_miss_tokens", "usage")
        if hits + misses != record.input_tokens:
            raise PayloadError(
                "usage.prompt_tokens",
                f"is {record.input_tokens}, but prompt_cache_hit_tokens + prompt_cache_miss_tokens "
                f"is {hits + misses}",
            )
    check_record(record, {**NAMES, "cached_tokens": "usage.prompt_cache_hit_tokens"})


PROVIDER = Provider(
    "deepseek", {"deepseek.chat": read_deepseek_chat}, chat=read_deepseek_chat, models=("deepseek-",)
)
