"""Lines of JSONL files: usage records, provider responses, and envelopes around them."""

from __future__ import annotations

import msgspec

from llm_cost_ops._gen.codecs import USAGE_RECORD
from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.normalizers.detection import detect_api
from llm_cost_ops.normalizers.errors import PayloadError
from llm_cost_ops.normalizers.usage import usage_from_response
from llm_cost_ops.normalizers.wrappers import is_wrapper
from llm_cost_ops.wire.errors import DecodeError

__all__ = ["record_from_line"]

_FIELDS = frozenset(UsageRecord.__struct_fields__) - {"unknown_"}
_ENVELOPE = _FIELDS | {"response", "provider", "api"}


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
