"""Writing what payloads have in common into a record."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from llm_cost_ops._gen.messages import ModalityTokens, UsageQuality
from llm_cost_ops.normalizers.errors import PayloadError
from llm_cost_ops.normalizers.reading import MAX_NUMBER, created_at, text

if TYPE_CHECKING:
    from llm_cost_ops._gen.messages import UsageRecord

__all__ = [
    "ids_are_unique",
    "set_identity",
    "set_key",
    "set_meter",
    "set_modality",
    "set_model",
    "set_stated",
    "set_tier",
    "set_tokens",
    "set_unknown",
]

_UNIQUE_IDS = frozenset(
    {"openai", "azure", "anthropic", "google", "aws", "cohere", "mistral", "x-ai", "deepseek", "groq"}
    | {"perplexity", "openrouter"}
)
_MAX_KEY = 255
# The names by which providers call the tier that costs the list price.
_STANDARD = frozenset({"", "default", "standard", "auto", "on_demand", "standard_only", "unspecified"})


def set_key(record: UsageRecord, response_id: str) -> None:
    """Make the response's id the idempotency key, with the provider before it.

    Recording one response twice then counts once. An id too long for a key is hashed.
    """
    if response_id and ids_are_unique(record.provider, response_id):
        key = f"{record.provider}:{response_id}" if record.provider else response_id
        if len(key) > _MAX_KEY:
            key = f"{record.provider[:100]}:{blake2b(response_id.encode(), digest_size=32).hexdigest()}"
        record.idempotency_key = key


def ids_are_unique(provider: str, response_id: str) -> bool:
    """Whether two calls of the provider never share this id.

    Ollama picks one of a thousand ids, lmdeploy counts up. Of a provider that is not known, or not
    known to give unique ids, only an id that is long and random enough for a UUID is taken.
    """
    if provider in _UNIQUE_IDS:
        return True
    tail = response_id.replace("-", "")[-24:]
    return len(tail) == 24 and len(set(tail)) >= 8 and not tail.isdigit()


def set_model(record: UsageRecord, model: str) -> None:
    """Set the model unless the caller named it."""
    if not record.model_id:
        record.model_id = model


def set_identity(record: UsageRecord, payload: dict[str, object], created: str = "created") -> None:
    """Set model, time and key from `model`, `created` and `id`."""
    if not record.model_id:
        record.model_id = text(payload, "model")
    set_key(record, text(payload, "id"))
    if created in payload:
        record.timestamp = created_at(payload[created])


def set_tier(record: UsageRecord, tier: str) -> None:
    """Set the service tier that served the call; the provider's names of the standard one are ""."""
    tier = tier.lower()
    if tier == "batch":
        record.processing = "batch"
    elif tier not in _STANDARD:
        record.service_tier = tier


def set_meter(record: UsageRecord, name: str, quantity: int) -> None:
    """Add to a meter; a quantity of 0 leaves no trace."""
    if quantity:
        total = record.meters.get(name, 0) + quantity
        if total > MAX_NUMBER:
            raise PayloadError("usage", f"{name} together cannot exceed 2^63 - 1, got {total}")
        record.meters[name] = total


def set_tokens(record: UsageRecord, input_tokens: int, output_tokens: int) -> None:
    """Set both totals and their sum; PayloadError when the sum exceeds 2^63 - 1."""
    total = input_tokens + output_tokens
    if total > MAX_NUMBER:
        raise PayloadError("usage", f"the tokens together cannot exceed 2^63 - 1, got {total}")
    record.input_tokens = input_tokens
    record.output_tokens = output_tokens
    record.total_tokens = total


def set_stated(record: UsageRecord, given: int | None, returned: int | None, total: int | None) -> bool:
    """Set the totals that are stated; False, and quality UNKNOWN, unless both are.

    One that is not stated is what the stated total leaves for it.
    """
    if total is not None:
        if given is None and returned is not None and total >= returned:
            given = total - returned
        elif returned is None and given is not None and total >= given:
            returned = total - given
    if given is None or returned is None:
        record.input_tokens, record.output_tokens = given, returned
        set_unknown(record)
        return False
    set_tokens(record, given, returned)
    return True


def set_modality(record: UsageRecord, **counts: int) -> None:
    """Set the counts by modality, if any of them is not 0."""
    if any(counts.values()):
        modality = record.modality = ModalityTokens()
        for name, value in counts.items():
            setattr(modality, name, value)


def set_unknown(record: UsageRecord) -> None:
    """Mark the counts as unknown: such a record is unpriced, its cost is never zero."""
    record.quality = UsageQuality.UNKNOWN
