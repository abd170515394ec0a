"""From a provider's response to a UsageRecord."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Unpack

from llm_cost_ops._gen.messages import Operation, Outcome, UsageQuality, UsageRecord
from llm_cost_ops.normalizers import chat, dialects, media, mistral
from llm_cost_ops.normalizers.anthropic import advisor_messages, read_messages
from llm_cost_ops.normalizers.bedrock import read_converse, read_invoke
from llm_cost_ops.normalizers.cohere import read_cohere
from llm_cost_ops.normalizers.detection import detect_api, detect_provider, refuse_errors
from llm_cost_ops.normalizers.errors import PayloadError
from llm_cost_ops.normalizers.filling import set_tokens, set_unknown
from llm_cost_ops.normalizers.gemini import read_generate_content, read_interaction
from llm_cost_ops.normalizers.generic import read_generic
from llm_cost_ops.normalizers.ollama import read_ollama
from llm_cost_ops.normalizers.opentelemetry import read_attributes
from llm_cost_ops.normalizers.reading import as_mapping, items, moment, money, section
from llm_cost_ops.normalizers.responses import read_responses
from llm_cost_ops.normalizers.streams import fold, fold_all, is_stream
from llm_cost_ops.normalizers.vercel import read_vercel
from llm_cost_ops.normalizers.wrappers import unwrap
from llm_cost_ops.rules.providers import canonical_provider
from llm_cost_ops.rules.usage import total_tokens
from llm_cost_ops.wire.coerce import texts

if TYPE_CHECKING:
    from llm_cost_ops._gen.resources import UsageRecordFields

__all__ = ["APIS", "usage_from_response", "usages_from_response"]

Normalizer = Callable[[dict[str, Any], UsageRecord], None]

# Each API: who serves it ("" where that must be told or found), and its normalizer.
_NORMALIZERS: dict[str, tuple[str, Normalizer]] = {
    "openai.chat": ("openai", chat.read_plain_chat),
    "openai.responses": ("openai", read_responses),
    "openai.embeddings": ("openai", media.read_embeddings),
    "openai.transcription": ("openai", media.read_transcription),
    "openai.speech": ("openai", media.read_speech),
    "openai.images": ("openai", media.read_images),
    "openai.realtime": ("openai", media.read_realtime),
    "azure.chat": ("azure", chat.read_plain_chat),
    "anthropic.messages": ("anthropic", read_messages),
    "google.generate": ("google", read_generate_content),
    "google.interactions": ("google", read_interaction),
    "bedrock.converse": ("aws", read_converse),
    "bedrock.invoke": ("aws", read_invoke),
    "ollama": ("ollama", read_ollama),
    "vercel": ("", read_vercel),
    "cohere.chat": ("cohere", read_cohere),
    "mistral.chat": ("mistral", mistral.read_mistral_chat),
    "mistral.ocr": ("mistral", mistral.read_mistral_ocr),
    "xai.chat": ("x-ai", dialects.read_xai_chat),
    "deepseek.chat": ("deepseek", dialects.read_deepseek_chat),
    "groq.chat": ("groq", dialects.read_groq_chat),
    "perplexity.chat": ("perplexity", dialects.read_perplexity_chat),
    "openrouter.chat": ("openrouter", dialects.read_openrouter_chat),
    "opentelemetry": ("", read_attributes),
    "generic": ("", read_generic),
}
APIS = tuple(_NORMALIZERS)
# How a provider speaks the chat API that OpenAI defined.
_DIALECTS: dict[str, Normalizer] = {
    "groq": dialects.read_groq_chat,
    "x-ai": dialects.read_xai_chat,
    "deepseek": dialects.read_deepseek_chat,
    "perplexity": dialects.read_perplexity_chat,
    "openrouter": dialects.read_openrouter_chat,
    "mistral": mistral.read_mistral_chat,
    "google": chat.read_google_chat,
}
_SHARED = frozenset({"openai.chat", "openai.responses", "openai.embeddings", "anthropic.messages"})
_ENUMS: dict[str, type[Enum]] = {"operation": Operation, "outcome": Outcome, "quality": UsageQuality}
_FIELDS = frozenset(UsageRecord.__struct_fields__) - {"unknown_"}


def usage_from_response(
    response: object, *, api: str | None = None, **fields: Unpack[UsageRecordFields]
) -> UsageRecord:
    """The usage that a provider's response states, as a record ready to submit.

    `response` is a dict, an SDK's object, a list or iterator of streamed events (which it exhausts),
    or a dict of OpenTelemetry gen_ai.* attributes. `api` is one of `APIS` and `provider=` any name;
    what is not given is told from the payload's shape. What neither says stays empty: Bedrock's and
    Cohere's responses do not name the model, so pass `model_id=`.

    Further `fields` are those of UsageRecord and win over the response; `meters` are added to its
    meters. The response's id, with the provider before it, becomes the idempotency key: recording a
    response twice counts once. A response without usage gives `quality` UNKNOWN, never zero cost.
    Unknown fields of the payload are ignored.

    Raises PayloadError, with `path`, when the payload contradicts itself or has no known shape;
    ValueError for an unknown `api`; TypeError for a field that UsageRecord has not.
    """
    provider, organization_id, given = _given(fields)
    if type(response) is dict or not is_stream(response):
        payload, stream_api, complete = as_mapping(response), "", True
    else:
        payload, stream_api, complete = fold(response)
    return _read(payload, stream_api, complete, provider, api, organization_id, given)


def usages_from_response(
    response: object, *, api: str | None = None, **fields: Unpack[UsageRecordFields]
) -> list[UsageRecord]:
    """As `usage_from_response`, for all billed calls that a response or a list of events holds.

    The messages of an advisor on another model, the models of Groq's compound systems, the turns of
    a live session and the responses of several streams each give a record. Further records of one
    response have its idempotency key with their number after it.
    """
    provider, organization_id, given = _given(fields)
    if type(response) is dict or not is_stream(response):
        found = [("", True, as_mapping(response))]
    else:
        found = [(streamed.api, streamed.complete, streamed.payload) for streamed in fold_all(response)]
    records: list[UsageRecord] = []
    for stream_api, complete, payload in found:
        first = _read(payload, stream_api, complete, provider, api, organization_id, given)
        parts = _parts(payload)
        if first.meters.get("other_model_calls") and parts:
            del first.meters["other_model_calls"]
            kept = {name: value for name, value in given.items() if name not in _OF_THE_FIRST}
            others = [
                _read(
                    part, "", True, first.provider, None, organization_id, {**kept, "model_id": part["model"]}
                )
                for part in parts
            ]
            for number, other in enumerate(others, 1):
                other.timestamp = other.timestamp or first.timestamp
                if first.idempotency_key:
                    other.idempotency_key = f"{first.idempotency_key[:240]}#{number}"
            # A compound system is billed by its models alone; an advisor comes on top of the message.
            records += others if "usage_breakdown" in payload else [first, *others]
        else:
            records.append(first)
    return records


_OF_THE_FIRST = frozenset({"model_id", "id", "idempotency_key", "reported_cost", "meters"})


def _parts(payload: dict[str, object]) -> list[dict[str, object]]:
    breakdown = section(payload, "usage_breakdown", "usage_breakdown")
    if breakdown is not None:
        return items(breakdown, "models", "usage_breakdown.models")
    return advisor_messages(payload) if payload.get("type") == "message" else []


def _given(fields: UsageRecordFields) -> tuple[str | None, str, dict[str, object]]:
    """The provider and the organization, and what else was given."""
    given: dict[str, Any] = {**fields}
    if given and not given.keys() <= _FIELDS:
        raise TypeError(f"UsageRecord has no field {min(given.keys() - _FIELDS)!r}")
    return given.pop("provider", None), given.pop("organization_id", ""), given


def _read(
    payload: dict[str, object],
    stream_api: str,
    complete: bool,
    provider: str | None,
    api: str | None,
    organization_id: str,
    fields: dict[str, object],
) -> UsageRecord:
    model = fields.get("model_id")
    record = UsageRecord(organization_id=organization_id, model_id=model if isinstance(model, str) else "")
    found = stream_api
    if "usage" not in payload and ("response" in payload or "result" in payload):
        payload, inner_api, record.processing, record.outcome = unwrap(payload)
        found = found or inner_api
    _normalize(payload, record, provider, api, found)
    if not complete:
        set_unknown(record)
    if fields:
        _set_fields(record, fields)
    if record.model_id.startswith("@"):
        _drop_integration(record)
    return record


def _drop_integration(record: UsageRecord) -> None:
    """Portkey's `@integration/model`: the model is what follows; an integration may be a provider's name.

    Cloudflare's `@cf/maker/model` are names of its own.
    """
    integration, _, model = record.model_id[1:].partition("/")
    if not integration or not model or integration in _CLOUDFLARE:
        return
    record.requested_model_id = record.requested_model_id or record.model_id
    record.model_id = model
    provider = canonical_provider(integration)
    if not record.provider and provider in _PROVIDERS:
        record.provider = provider


_CLOUDFLARE = frozenset({"cf", "hf"})
_PROVIDERS = frozenset(provider for provider, _ in _NORMALIZERS.values() if provider)


def _normalize(
    payload: dict[str, object], record: UsageRecord, provider: str | None, api: str | None, found: str
) -> None:
    # Who calls and names an API means its provider; a stream of a shared API leaves it open.
    stated = bool(api) or (found == "openai.chat" and not payload)
    api = api or found
    if not api:
        api = detect_api(payload)
        if not api:
            refuse_errors(payload)
            if not provider:
                raise PayloadError("", "no known shape of a response; pass api= or provider=")
            api = "generic"
    try:
        default, normalizer = _NORMALIZERS[api]
    except KeyError:
        raise ValueError(f"unknown api {api!r}; known are {', '.join(APIS)}") from None
    if provider:
        record.provider = canonical_provider(provider)
        if api == "generic" and not stated and record.provider == "anthropic":
            normalizer = read_messages
    elif api in _SHARED:
        record.provider = detect_provider(payload, api) or (default if stated else "")
    else:
        record.provider = default
    if api == "openai.chat":
        normalizer = _DIALECTS.get(record.provider, normalizer)
    if not payload and record.outcome != Outcome.UNSPECIFIED:
        # A request of a batch that failed is not billed: its counts are known to be 0.
        set_tokens(record, 0, 0)
        return
    normalizer(payload, record)


def _set_fields(record: UsageRecord, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name == "meters":
            value = {**record.meters, **(value or {})}
        elif name in _ENUMS and type(value) is str:
            value = _ENUMS[name](value)
        elif name == "timestamp":
            value = moment(value, name)
        elif name == "reported_cost":
            value = money(value, name)
        elif name == "tags":
            value = texts(value)
        setattr(record, name, value)
    if ("input_tokens" in fields or "output_tokens" in fields) and "total_tokens" not in fields:
        record.total_tokens = total_tokens(record)
