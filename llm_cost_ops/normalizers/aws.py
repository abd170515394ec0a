"""Amazon Bedrock: Converse and the metadata event of ConverseStream.

inputTokens excludes cache reads and writes. The response does not name the model: the caller does,
and its prefix is the geography that sets the price.
"""

from __future__ import annotations

from llm_cost_ops._gen.messages import Operation, UsageRecord
from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.payload import count, counted, has, items, section, text
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.record import (
    check_record,
    set_key,
    set_model,
    set_speed,
    set_stated,
    set_tier,
    set_tokens,
    set_unknown,
)

__all__ = ["PROVIDER"]

_CHAT = Operation.CHAT
NAMES = {
    "cache_write_tokens": "usage.cacheWriteInputTokens",
    "cache_write_extended_tokens": "usage.cacheDetails[ttl=1h].inputTokens",
}
_IN_HEADER = "x-amzn-bedrock-input-token-count"
_OUT_HEADER = "x-amzn-bedrock-output-token-count"
_READ_HEADER = "x-amzn-bedrock-cache-read-input-token-count"
_WRITTEN_HEADER = "x-amzn-bedrock-cache-write-input-token-count"
_METRICS = "amazon-bedrock-invocationMetrics"
_GEOGRAPHIES = frozenset(
    {"us", "us-gov", "eu", "apac", "ap", "au", "jp", "ca", "sa", "uk", "in", "me", "af", "il", "mx"}
)


def region_of(model_id: str) -> str:
    """The geography in the prefix of a Bedrock model id: "us", "eu"…; "" for global and unprefixed ones."""
    prefix = model_id.rpartition("/")[2].partition(".")[0]
    return prefix if prefix in _GEOGRAPHIES else ""


def read_converse(payload: dict[str, object], record: UsageRecord) -> None:
    """A Converse response; pass `model_id=`, which the response does not carry."""
    record.operation = _CHAT
    set_model(record, text(payload, "modelId") or text(payload, "model"))
    record.region = region_of(record.model_id)
    metadata = section(payload, "ResponseMetadata") or {}
    set_key(record, text(metadata, "RequestId"))
    set_tier(record, text(section(payload, "serviceTier") or {}, "type"))
    latency = text(section(payload, "performanceConfig") or {}, "latency")
    set_speed(record, latency)
    usage = section(payload, "usage")
    if usage is None:
        set_unknown(record)
        return
    returns = has(usage, "outputTokens")
    if not returns and has(usage, "inputTokens") and _is_blocked(payload):
        # A guardrail wrote the answer instead of the model, whose output is then 0 tokens.
        usage, returns = {**usage, "outputTokens": 0}, True
    if not returns or not has(usage, "inputTokens"):
        record.input_tokens = counted(usage, "inputTokens", "usage")
        record.output_tokens = counted(usage, "outputTokens", "usage")
        set_unknown(record)
        return
    _read_tokens(usage, record)
    check_record(record, NAMES)


def _is_blocked(payload: dict[str, object]) -> bool:
    """Whether a guardrail intervened: as Converse says it, or as InvokeModel does."""
    return (
        text(payload, "stopReason") == "guardrail_intervened"
        or text(payload, "amazon-bedrock-guardrailAction") == "INTERVENED"
    )


def read_invoke(payload: dict[str, object], record: UsageRecord) -> None:
    """InvokeModel: the bodies of Llama and Titan, or the counts in the headers of the answer."""
    record.operation = Operation.EMBEDDINGS if "embedding" in payload else _CHAT
    set_model(record, text(payload, "modelId") or text(payload, "model"))
    record.region = region_of(record.model_id)
    metadata = section(payload, "ResponseMetadata") or {}
    set_key(record, text(metadata, "RequestId"))
    set_tier(record, text(payload, "serviceTier"))
    set_speed(record, text(payload, "performanceConfigLatency"))
    given, returned = _native_counts(payload)
    if returned is None and record.operation == Operation.EMBEDDINGS and given is not None:
        returned = 0
    read = written = 0
    if given is None and returned is None:
        headers = section(metadata, "HTTPHeaders", "ResponseMetadata") or payload
        headers = {str(name).lower(): value for name, value in headers.items()}
        given = counted(headers, _IN_HEADER, "headers")
        returned = counted(headers, _OUT_HEADER, "headers")
        read, written = count(headers, _READ_HEADER, "headers"), count(headers, _WRITTEN_HEADER, "headers")
        if returned is None and given is not None and "embed" in record.model_id:
            returned = 0
    elif (metrics := section(payload, _METRICS)) is not None:
        read = count(metrics, "cacheReadInputTokenCount", _METRICS)
        written = count(metrics, "cacheWriteInputTokenCount", _METRICS)
    if given is not None:
        # As in Converse, the input leaves out the cache.
        given += read + written
        record.cached_tokens, record.cache_write_tokens = read, written
    set_stated(record, given, returned, None)


def _native_counts(payload: dict[str, object]) -> tuple[int | None, int | None]:
    given = counted(payload, "prompt_token_count")
    returned = counted(payload, "generation_token_count")
    if has(payload, "inputTextTokenCount"):
        given = count(payload, "inputTextTokenCount")
        returned = counted(payload, "totalOutputTextTokenCount")
        results = items(payload, "results")
        if results:
            returned = sum(count(result, "tokenCount", f"results[{i}]") for i, result in enumerate(results))
    metrics = section(payload, _METRICS)
    if metrics is not None and (given is None or returned is None):
        given = counted(metrics, "inputTokenCount", _METRICS)
        returned = counted(metrics, "outputTokenCount", _METRICS)
    return given, returned


def _read_tokens(usage: dict[str, object], record: UsageRecord) -> None:
    plain, output = count(usage, "inputTokens", "usage"), count(usage, "outputTokens", "usage")
    # The bodies of Nova say Count where Converse says Tokens.
    read = count(usage, "cacheReadInputTokens", "usage") or count(usage, "cacheReadInputTokenCount", "usage")
    written = count(usage, "cacheWriteInputTokens", "usage")
    written = written or count(usage, "cacheWriteInputTokenCount", "usage")
    split = {"5m": 0, "1h": 0}
    for index, detail in enumerate(items(usage, "cacheDetails", "usage")):
        ttl = text(detail, "ttl")
        split[ttl] = split.get(ttl, 0) + count(detail, "inputTokens", f"usage.cacheDetails[{index}]")
    if not has(usage, "cacheWriteInputTokens") and not has(usage, "cacheWriteInputTokenCount"):
        written = sum(split.values())
    elif sum(split.values()) > written:
        raise PayloadError(
            "usage.cacheWriteInputTokens",
            f"is {written}, less than the sum of usage.cacheDetails ({sum(split.values())})",
        )
    given = plain + read + written
    if usage.get("totalTokens") is not None:
        total = count(usage, "totalTokens", "usage")
        # Some models leave the cache out of the total too.
        if total not in (given + output, plain + output):
            raise PayloadError(
                "usage.totalTokens",
                f"is {total}, but inputTokens + cacheReadInputTokens + cacheWriteInputTokens + outputTokens "
                f"is {given + output}",
            )
    set_tokens(record, given, output)
    record.cached_tokens = read
    record.cache_write_tokens = written
    record.cache_write_extended_tokens = split["1h"]


def _is_invoke(payload: dict[str, object]) -> bool:
    """Whether Bedrock's InvokeModel answered: the counts of Llama or Titan, or those in its headers."""
    if not _INVOKE_KEYS.isdisjoint(payload):
        return True
    metadata = payload.get("ResponseMetadata")
    return isinstance(metadata, dict) and "body" in payload


def _detect(payload: dict[str, object], usage: dict[str, object] | None) -> str:
    if usage is not None:
        return "bedrock.converse" if "inputTokens" in usage or "outputTokens" in usage else ""
    if _is_invoke(payload):
        return "bedrock.invoke"
    return "bedrock.converse" if "stopReason" in payload else ""


def _serves_claude(payload: dict[str, object], _usage: dict[str, object]) -> bool:
    response_id = payload.get("id")
    return type(response_id) is str and response_id.startswith("msg_bdrk_")


_INVOKE_KEYS = frozenset(
    (
        "prompt_token_count",
        "generation_token_count",
        "inputTextTokenCount",
        "amazon-bedrock-invocationMetrics",
        "x-amzn-bedrock-input-token-count",
        "X-Amzn-Bedrock-Input-Token-Count",
    )
)
PROVIDER = Provider(
    "aws",
    {"bedrock.converse": read_converse, "bedrock.invoke": read_invoke},
    detect=_detect,
    serves={"anthropic.messages": _serves_claude},
)
