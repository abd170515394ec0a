"""From a provider's response, or a line of a JSONL file, to a UsageRecord."""

from __future__ import annotations

import contextlib
from enum import Enum
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from llm_cost_ops._gen.codecs import USAGE_RECORD
from llm_cost_ops._gen.messages import Operation, Outcome, UsageQuality, UsageRecord
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.anthropic import advisor_messages, read_messages
from llm_cost_ops.normalizers.chat import read_gateway_cost
from llm_cost_ops.normalizers.openai import svg_calls
from llm_cost_ops.normalizers.payload import as_mapping, items, moment, money, section, shallow
from llm_cost_ops.normalizers.provider import Normalizer
from llm_cost_ops.normalizers.providers import APIS as _NORMALIZERS
from llm_cost_ops.normalizers.providers import (
    DIALECTS,
    NAMES,
    SHARED_APIS,
    UNIQUE_IDS,
    detect_api,
    detect_provider,
    is_random,
    refuse_errors,
)
from llm_cost_ops.normalizers.record import set_meter, set_tokens, set_unknown
from llm_cost_ops.normalizers.streams import Streamed, fold, fold_all, is_stream, is_wrapper, unwrap
from llm_cost_ops.normalizers.xai import read_xai_extras
from llm_cost_ops.rules.providers import provider_named
from llm_cost_ops.rules.requests import total_tokens
from llm_cost_ops.wire.coerce import texts
from llm_cost_ops.wire.errors import DecodeError

if TYPE_CHECKING:
    from llm_cost_ops._gen.resources import UsageRecordFields

__all__ = ["APIS", "record_from_line", "usage_from_response", "usages_from_response"]

_ENUMS: dict[str, type[Enum]] = {"operation": Operation, "outcome": Outcome, "quality": UsageQuality}
_FIELDS = frozenset(UsageRecord.__struct_fields__) - {"unknown_"}
_ENVELOPE = _FIELDS | {"response", "provider", "api"}
APIS = tuple(_NORMALIZERS)


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
    # The keywords of this call: changing the dict harms no one.
    given: Any = fields
    provider, organization_id = given.pop("provider", None), given.pop("organization_id", "")
    if given:
        _check_names(given)
    if type(response) is dict:
        return _read(response, "", True, provider, api, organization_id, given)
    if is_stream(response):
        payload, stream_api, complete = fold(response)
    else:
        payload, stream_api, complete = as_mapping(response), "", True
    return _read(payload, stream_api, complete, provider, api, organization_id, given)


def usages_from_response(
    response: object, *, api: str | None = None, **fields: Unpack[UsageRecordFields]
) -> list[UsageRecord]:
    """As `usage_from_response`, for all billed calls that a response or a list of events holds.

    The messages of an advisor on another model, the models of Groq's compound systems, the turns of
    a live session and the responses of several streams each give a record. Further records of one
    response have its idempotency key with their number after it.
    """
    # The keywords of this call: changing the dict harms no one.
    given: Any = fields
    provider, organization_id = given.pop("provider", None), given.pop("organization_id", "")
    if given:
        _check_names(given)
    if type(response) is dict or not is_stream(response):
        found = [Streamed(as_mapping(response), "", complete=True)]
    else:
        found = fold_all(response)
    kept = {name: value for name, value in given.items() if name not in _OF_THE_FIRST}
    records: list[UsageRecord] = []
    for payload, stream_api, complete in found:
        first = _read(payload, stream_api, complete, provider, api, organization_id, given)
        others = [
            _read(part, "", True, first.provider, None, organization_id, {**kept, "model_id": part["model"]})
            for part in (_parts(payload) if first.meters.get("other_model_calls") else ())
        ]
        for number, other in enumerate(others, 1):
            other.timestamp = other.timestamp or first.timestamp
            if first.idempotency_key:
                other.idempotency_key = f"{first.idempotency_key[:240]}#{number}"
        if others:
            del first.meters["other_model_calls"]
        if others and "usage_breakdown" in payload:
            # A compound system is billed by its models, and by the tools that it ran.
            for name, quantity in first.meters.items():
                set_meter(others[0], name, quantity)
            records += others
        else:
            # An advisor comes on top of the message.
            records += [first, *others]
    return records


_OF_THE_FIRST = frozenset({"model_id", "id", "idempotency_key", "reported_cost", "meters"})


def _parts(payload: dict[str, object]) -> list[dict[str, object]]:
    breakdown = section(payload, "usage_breakdown")
    if breakdown is not None:
        return items(breakdown, "models", "usage_breakdown")
    return advisor_messages(payload) if payload.get("type") == "message" else svg_calls(payload)


def _check_names(given: dict[str, object]) -> None:
    if not given.keys() <= _FIELDS:
        raise TypeError(f"UsageRecord has no field {min(given.keys() - _FIELDS)!r}")


def _read(
    payload: dict[str, object],
    found: str,
    complete: bool,
    provider: str | None,
    api: str | None,
    organization_id: str,
    fields: dict[str, object],
) -> UsageRecord:
    """The record of one call; `found` is the API that a stream was recognised as."""
    record = UsageRecord(organization_id=organization_id)
    if fields and isinstance(model := fields.get("model_id"), str):
        record.model_id = model
    if "usage" not in payload and ("response" in payload or "result" in payload):
        payload, inner_api, record.processing, record.outcome = unwrap(payload)
        found = found or inner_api
    normalizer = _choose(payload, found, provider, api, record)
    if not payload and record.outcome != Outcome.UNSPECIFIED:
        # A request of a batch that failed is not billed: its counts are known to be 0.
        set_tokens(record, 0, 0)
    else:
        normalizer(payload, record)
        usage = payload.get("usage")
        if usage and not (type(usage) is dict and _STATED.isdisjoint(usage)):
            _read_stated(usage, record)
        if record.provider not in UNIQUE_IDS:
            _keep_random_key(record)
    if not complete:
        # A cost beside the counts so far is the cost so far.
        set_unknown(record)
        record.reported_cost = None
    if fields:
        _set_fields(record, fields)
    if record.model_id[:1] == "@":
        _drop_integration(record)
    return record


def _choose(
    payload: dict[str, object], found: str, provider: str | None, api: str | None, record: UsageRecord
) -> Normalizer:
    """Set the record's provider and return what reads the API: as the caller names both, or as found."""
    # Who calls and names an API means its provider; a stream of a shared API leaves it open.
    stated = api or (not payload and found == "openai.chat")
    api = api or found or detect_api(payload)
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
        record.provider = provider_named(provider)
        if api == "generic" and not stated and record.provider == "anthropic":
            normalizer = read_messages
    elif api in SHARED_APIS:
        record.provider = detect_provider(payload, api) or (default if stated else "")
    else:
        record.provider = default
    if api == "openai.chat":
        normalizer = DIALECTS.get(record.provider, normalizer)
    return normalizer


# Fields that only xAI has: they tell its answers, whichever gateway or API they come through.
_OF_XAI = frozenset(
    (
        "cost_in_usd_ticks",
        "num_sources_used",
        "billable_audio_seconds",
        "server_side_tool_usage_details",
        "server_side_tools_used",
    )
)
_STATED = _OF_XAI | {"cost"}


def _read_stated(stated: object, record: UsageRecord) -> None:
    """Read what is stated in the same way in every API: xAI's tools and cost, a gateway's `cost`."""
    usage = shallow(stated)
    if not usage:
        return
    if not _OF_XAI.isdisjoint(usage):
        read_xai_extras(usage, record)
    if (
        record.reported_cost is None
        and usage.get("cost") is not None
        and not isinstance(usage["cost"], (dict, bool))
    ):
        with contextlib.suppress(PayloadError):
            read_gateway_cost(usage, record)


def _keep_random_key(record: UsageRecord) -> None:
    """Take back a key that was made of an id which another call may have."""
    if not is_random(record.idempotency_key.removeprefix(f"{record.provider}:")):
        record.idempotency_key = ""


def _drop_integration(record: UsageRecord) -> None:
    """Portkey's `@integration/model`: the model is what follows; an integration may be a provider's name.

    Cloudflare's `@cf/maker/model` are names of its own.
    """
    integration, _, model = record.model_id[1:].partition("/")
    if not integration or not model or integration in _CLOUDFLARE:
        return
    record.requested_model_id = record.requested_model_id or record.model_id
    record.model_id = model
    provider = provider_named(integration)
    if not record.provider and provider in NAMES:
        record.provider = provider


_CLOUDFLARE = frozenset({"cf", "hf"})


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


def record_from_line(obj: dict[str, object]) -> UsageRecord:
    """The record that one JSON object stands for.

    It is a UsageRecord as REST has it (known by `model_id` or `input_tokens` at its top), a
    provider's response as it came, or an envelope: `response` with, beside it, `provider`, `api` and
    any fields of UsageRecord, which win over the response.

    Raises PayloadError, with `path`, for anything else and for contradictions.
    """
    if not isinstance(obj, dict):
        raise PayloadError("", f"expected a JSON object, got {type(obj).__name__}")
    # Ollama's own answers have their text in `response`.
    if "response" in obj and not is_wrapper(obj) and detect_api(obj) != "ollama":
        return _from_envelope(obj)
    if "model_id" in obj or "input_tokens" in obj:
        return _decode(obj)
    return usage_from_response(obj)


def _from_envelope(obj: dict[str, object]) -> UsageRecord:
    unknown = sorted(obj.keys() - _ENVELOPE)
    if unknown:
        raise PayloadError(unknown[0], "is no field of an envelope around a response")
    given = {name: value for name, value in obj.items() if name not in ("response", "provider", "api")}
    record = _decode(given)
    fields = {name: getattr(record, name) for name in given if name != "organization_id"}
    return usage_from_response(
        obj["response"],
        provider=_text(obj, "provider") or "",
        api=_text(obj, "api"),
        organization_id=record.organization_id,
        **fields,
    )


def _text(obj: dict[str, object], key: str) -> str | None:
    value = obj.get(key)
    if value is not None and not isinstance(value, str):
        raise PayloadError(key, f"expected a string, got {type(value).__name__}")
    return value


def _decode(obj: dict[str, object]) -> UsageRecord:
    try:
        return USAGE_RECORD.decode_json(msgspec.json.encode(obj))
    except DecodeError as error:
        raise PayloadError(error.path, error.reason) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError("", str(error)) from error
