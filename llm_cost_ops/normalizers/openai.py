"""OpenAI's and Azure's APIs other than chat: Responses, embeddings, transcription, speech, images, realtime.

input_tokens and output_tokens are inclusive. Calls of the hosted tools of the Responses API are billed
but are not in the usage: they are counted from the output items.
"""

from __future__ import annotations

from llm_cost_ops._gen.messages import Operation, Outcome, UsageRecord
from llm_cost_ops.normalizers.chat import read_gateway_cost, read_plain_chat, xai_output
from llm_cost_ops.normalizers.payload import count, counted, duration_ms, has, items, money, section, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import (
    cache_writes,
    check_record,
    check_total,
    fit_details,
    read_modality,
    set_identity,
    set_key,
    set_meter,
    set_modality,
    set_model,
    set_stated,
    set_tier,
    set_tokens,
    set_unknown,
    set_unstated,
    set_vertex_tier,
)

__all__ = ["AZURE", "PROVIDER", "svg_calls"]

_CHAT = Operation.CHAT
_NAMES = {
    "input_tokens": "usage.input_tokens",
    "output_tokens": "usage.output_tokens",
    "cached_tokens": "usage.input_tokens_details.cached_tokens",
    "cache_write_tokens": "usage.input_tokens_details.cache_write_tokens",
    "cache_write_extended_tokens": "usage.input_tokens_details.cache_write_tokens_details.ttl_12h",
    "reasoning_tokens": "usage.output_tokens_details.reasoning_tokens",
}
_INPUTS = "usage.input_tokens_details"
_OUTPUTS = "usage.output_tokens_details"
_BATCH_DONE = frozenset({"completed", "expired", "cancelled", "failed"})
_OUTCOMES = {"failed": Outcome.FAILED, "cancelled": Outcome.CANCELLED}
_CALLS = {
    "web_search_call": "web_searches",
    "file_search_call": "file_searches",
    "code_interpreter_call": "code_interpreter_sessions",
    "x_search_call": "social_searches",
    "image_generation_call": "image_generation_calls",
    "shell_call": "containers",
}


def read_responses(payload: dict[str, object], record: UsageRecord) -> None:
    """A response object of the Responses API."""
    record.operation = _CHAT
    set_identity(record, payload, "created_at")
    set_tier(record, text(payload, "service_tier"))
    status = text(payload, "status")
    record.outcome = _OUTCOMES.get(status, record.outcome)
    usage = section(payload, "usage")
    if payload.get("object") == "batch":
        _read_batch(payload, record)
        if status not in _BATCH_DONE:
            # Its sums grow until then, and the key is for what they come to.
            record.idempotency_key, usage = "", None
    if usage is None or not _read_tokens(usage, record):
        set_unstated(record, payload)
        _count_calls(payload, record)
        return
    if not has(usage, "server_side_tool_usage_details") and not has(usage, "server_side_tools_used"):
        _count_calls(payload, record)
    if "cost" in usage:
        _read_cost(usage, record)
    if "extra_properties" in usage:
        set_vertex_tier(record, usage)
    if record.provider == "openrouter":
        fit_details(record)
    check_record(record, _NAMES)


def _read_batch(payload: dict[str, object], record: UsageRecord) -> None:
    """A batch with the sums of its answers: of many calls, at the price of a batch."""
    record.processing = "batch"
    record.operation, record.outcome = Operation.UNSPECIFIED, Outcome.UNSPECIFIED
    requests = section(payload, "request_counts") or {}
    record.request_count = count(requests, "completed", "request_counts") or None


def _read_tokens(usage: dict[str, object], record: UsageRecord) -> bool:
    """False when input or output is not stated and does not follow from the total."""
    total = counted(usage, "total_tokens", "usage")
    given, returned = counted(usage, "input_tokens", "usage"), counted(usage, "output_tokens", "usage")
    if given is None or returned is None:
        if not set_stated(record, given, returned, total):
            return False
        given, returned = record.input_tokens or 0, record.output_tokens or 0
    prompt, output = given, returned
    # DashScope and assistants name the details by other APIs of OpenAI.
    named = section(usage, "input_tokens_details", "usage")
    inputs = named or section(usage, "prompt_tokens_details", "usage")
    outputs = section(usage, "output_tokens_details", "usage")
    reasoning = count(outputs, "reasoning_tokens", _OUTPUTS) if outputs else 0
    if record.provider == "x-ai":
        output, reasoning = xai_output(prompt, output, reasoning, total)
    elif total is not None:
        check_total("usage.total_tokens", total, prompt + output, "input_tokens + output_tokens")
    set_tokens(record, prompt, output)
    record.reasoning_tokens = reasoning
    if inputs:
        # Perplexity names its cache reads as Anthropic does, but counts them in the total.
        key = "cached_tokens" if "cached_tokens" in inputs else "cache_read_input_tokens"
        record.cached_tokens = count(inputs, key, _INPUTS)
        record.cache_write_tokens, record.cache_write_extended_tokens = cache_writes(inputs, _INPUTS)
        read_modality(inputs, _INPUTS, outputs or {}, _OUTPUTS, record)
    return True


def _count_calls(payload: dict[str, object], record: UsageRecord) -> None:
    if not isinstance(payload.get("output"), (list, tuple)):
        return
    containers: set[str] = set()
    for item in items(payload, "output"):
        kind = text(item, "type")
        meter = _CALLS.get(kind)
        if has(item, "svg_usage"):
            # By another model: `usages_from_response` gives a separate record for it.
            set_meter(record, "other_model_calls", 1)
        if meter is None or (kind == "web_search_call" and not _is_search(item)):
            continue
        if kind == "web_search_call" and _is_preview(payload, record.model_id):
            meter = "web_search_previews"
        elif kind == "image_generation_call" and text(item, "status") == "failed":
            continue
        elif kind == "code_interpreter_call" and record.provider == "x-ai":
            # xAI bills its code tool by the call.
            meter = "code_executions"
        elif kind in ("code_interpreter_call", "shell_call"):
            # A container is billed once however many calls run in it; a local shell has none.
            container = text(item, "container_id")
            if kind == "shell_call":
                environment = section(item, "environment", "output") or {}
                container = text(environment, "container_id")
                if not container and not text(environment, "type").startswith("container"):
                    continue
            if container and container in containers:
                continue
            containers.add(container)
        set_meter(record, meter, 1)


def _is_preview(payload: dict[str, object], model: str) -> bool:
    """Whether searches are web_search_preview's with a model that does not reason: they cost more."""
    return model.rpartition("/")[2].startswith(("gpt-4o", "gpt-4.1")) and any(
        text(tool, "type").startswith("web_search_preview") for tool in items(payload, "tools")
    )


def _is_search(item: dict[str, object]) -> bool:
    """Opening a page and finding something in it are calls too, but only searches are billed."""
    action = section(item, "action", "output")
    return action is None or text(action, "type") in ("", "search")


def _read_cost(usage: dict[str, object], record: UsageRecord) -> None:
    cost = usage["cost"]
    if isinstance(cost, dict):
        record.reported_cost = money(cost.get("total_cost"), "usage.cost.total_cost")
    else:
        read_gateway_cost(usage, record)


_TOKEN_NAMES = {
    "input_tokens": "usage.input_tokens",
    "output_tokens": "usage.output_tokens",
    "cached_tokens": "usage.input_token_details.cached_tokens",
    "input_audio_tokens": "usage.input_token_details.audio_tokens",
    "input_image_tokens": "usage.input_token_details.image_tokens",
    "cached_audio_tokens": "usage.input_token_details.cached_tokens_details.audio_tokens",
    "cached_image_tokens": "usage.input_token_details.cached_tokens_details.image_tokens",
}


def read_embeddings(payload: dict[str, object], record: UsageRecord) -> None:
    """Embeddings: prompt_tokens only."""
    record.operation = Operation.EMBEDDINGS
    set_identity(record, payload)
    usage = section(payload, "usage")
    if usage is None or not (has(usage, "prompt_tokens") or has(usage, "total_tokens")):
        set_unknown(record)
        return
    total = count(usage, "total_tokens", "usage")
    # Voyage and others send the total alone.
    prompt = count(usage, "prompt_tokens", "usage") if has(usage, "prompt_tokens") else total
    output = count(usage, "completion_tokens", "usage")
    if usage.get("total_tokens") is not None:
        check_total("usage.total_tokens", total, prompt + output, "prompt_tokens + completion_tokens")
    set_tokens(record, prompt, output)


def read_transcription(payload: dict[str, object], record: UsageRecord) -> None:
    """Transcriptions, billed by tokens or by the seconds of audio (`meters.audio_ms`)."""
    record.operation = Operation.TRANSCRIPTION
    set_model(record, text(payload, "model"))
    groq = section(payload, "x_groq")
    set_key(record, text(groq, "id") if groq else "")
    usage = section(payload, "usage")
    if usage is None:
        if payload.get("duration") is None:
            set_unknown(record)
        else:
            set_meter(record, "audio_ms", duration_ms(payload["duration"], "duration"))
    elif usage.get("seconds") is not None:
        set_meter(record, "audio_ms", duration_ms(usage["seconds"], "usage.seconds"))
    else:
        _read_token_counts(usage, record)


def read_speech(payload: dict[str, object], record: UsageRecord) -> None:
    """Speech: `usage.characters`, or the tokens of a speech.audio.done event. All output is audio."""
    record.operation = Operation.SPEECH
    set_model(record, text(payload, "model"))
    usage = section(payload, "usage")
    if usage is not None and usage.get("characters") is not None:
        set_meter(record, "characters", count(usage, "characters", "usage"))
    elif _read_token_counts(usage, record):
        set_modality(record, output_audio_tokens=record.output_tokens or 0)


def read_images(payload: dict[str, object], record: UsageRecord) -> None:
    """Images: tokens, output being image tokens unless details say otherwise.

    Models that are billed by the image send no usage: their images are counted (`meters.images`).
    """
    record.operation = Operation.IMAGE
    set_identity(record, payload)
    usage = section(payload, "usage")
    if has(payload, "svg_usage"):
        # By another model: `usages_from_response` gives a separate record for it.
        set_meter(record, "other_model_calls", 1)
    data = payload.get("data")
    if usage is None and isinstance(data, (list, tuple)):
        set_meter(record, "images", len(data))
    elif _read_token_counts(usage, record) and usage is not None:
        images = (record.output_tokens or 0) - record.reasoning_tokens
        details = section(usage, "output_tokens_details", "usage")
        if details is not None and details.get("image_tokens") is not None:
            images = count(details, "image_tokens", "usage.output_tokens_details")
        set_modality(
            record,
            input_image_tokens=record.modality.input_image_tokens if record.modality else 0,
            output_image_tokens=images,
        )
        check_record(record, _TOKEN_NAMES)


def svg_calls(payload: dict[str, object]) -> list[dict[str, object]]:
    """The calls of the models that wrote a response's SVG images, each as a response of its own."""
    output = payload.get("output")
    holders = items(payload, "output") if isinstance(output, (list, tuple)) else []
    found = [section(holder, "svg_usage") for holder in (payload, *holders)]
    return [
        {
            "object": "response",
            "model": text(usage, "model"),
            "usage": {**usage, "output_tokens_details": {"reasoning_tokens": usage.get("reasoning_tokens")}},
        }
        for usage in found
        if usage is not None
    ]


def read_realtime(payload: dict[str, object], record: UsageRecord) -> None:
    """A response of a realtime session, from its response.done event."""
    record.operation = Operation.REALTIME
    set_identity(record, payload)
    usage = section(payload, "usage")
    _read_token_counts(usage, record)


def _read_token_counts(usage: dict[str, object] | None, record: UsageRecord) -> bool:
    """Token counts with details by modality; False when they are unknown."""
    if usage is None:
        set_unknown(record)
        return False
    total = counted(usage, "total_tokens", "usage")
    stated, spoken = counted(usage, "input_tokens", "usage"), counted(usage, "output_tokens", "usage")
    if not set_stated(record, stated, spoken, total):
        return False
    given, returned = record.input_tokens or 0, record.output_tokens or 0
    if total is not None:
        check_total("usage.total_tokens", total, given + returned, "input_tokens + output_tokens")
    inputs, path = _details(usage, "input")
    outputs, output_path = _details(usage, "output")
    record.cached_tokens = count(inputs, "cached_tokens", path)
    record.reasoning_tokens = count(outputs, "reasoning_tokens", output_path)
    read_modality(inputs, path, outputs, output_path, record)
    check_record(record, _TOKEN_NAMES)
    return True


def _details(usage: dict[str, object], side: str) -> tuple[dict[str, object], str]:
    """Audio and realtime say input_token_details, images input_tokens_details."""
    for key in (f"{side}_token_details", f"{side}_tokens_details"):
        found = section(usage, key, "usage")
        if found is not None:
            return found, f"usage.{key}"
    return {}, f"usage.{side}_token_details"


def _detect(payload: dict[str, object], usage: dict[str, object] | None) -> str:
    if usage is None:
        if "choices" in payload:
            return "openai.chat"
        if "duration" in payload and "text" in payload:
            return "openai.transcription"
        return "openai.images" if "created" in payload and "data" in payload else ""
    if usage.get("type") in ("tokens", "duration") or "seconds" in usage:
        return "openai.transcription"
    if text(payload, "type") == "speech.audio.done" or set(usage) == {"characters"}:
        return "openai.speech"
    if "input_tokens" not in usage and "output_tokens" not in usage:
        return "openai.embeddings" if set(usage) == {"total_tokens"} else ""
    if "output" in payload or ("output_tokens_details" in usage and "data" not in payload):
        return "openai.responses"
    if "data" in payload or "b64_json" in payload:
        return "openai.images"
    if "input_token_details" in usage:
        return "openai.realtime"
    details = section(usage, "input_tokens_details", "usage") or {}
    is_image = has(details, "image_tokens") or text(payload, "model").startswith(_IMAGE_MODELS)
    return "openai.images" if is_image else ""


def _serves_azure(payload: dict[str, object], _usage: dict[str, object]) -> bool:
    if "prompt_filter_results" in payload:
        return True
    choices = payload.get("choices")
    if type(choices) is not list or not choices:
        return False
    first = choices[0]
    return type(first) is dict and "content_filter_results" in first


_CHAT_MODELS = ("gpt-", "o1", "o3", "o4-", "chatgpt-", "ft:gpt-")
_MODELS = (*_CHAT_MODELS, "text-embedding-", "whisper-1", "tts-1", "dall-e")
_IMAGE_MODELS = ("gpt-image-", "chatgpt-image-", "dall-e-")
PROVIDER = Provider(
    "openai",
    {
        "openai.chat": read_plain_chat,
        "openai.responses": read_responses,
        "openai.embeddings": read_embeddings,
        "openai.transcription": read_transcription,
        "openai.speech": read_speech,
        "openai.images": read_images,
        "openai.realtime": read_realtime,
    },
    models=_MODELS,
    objects={
        "chat.completion": "openai.chat",
        "chat.completion.chunk": "openai.chat",
        "text_completion": "openai.chat",
        "response": "openai.responses",
        "realtime.response": "openai.realtime",
        "batch": "openai.responses",
    },
    detect=_detect,
    shared=frozenset({"openai.chat", "openai.responses", "openai.embeddings"}),
)
AZURE = Provider("azure", {"azure.chat": read_plain_chat}, serves={"openai.chat": _serves_azure})
