"""What it costs to read a provider's response, beside genai-prices' extract_usage on the same dicts.

Run: python benchmarks/bench_normalizers.py. Prints the best of forty short runs, in microseconds a call.
The aim: at most 10 µs for a plain dict. genai-prices reads the counts alone: no details by modality,
no tool calls, tiers, identity or time, no checks of sums; the two columns are not the same work.
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable
from typing import Any

from llm_cost_ops.normalizers import usage_from_response

AIM_US = 10.0

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1793534400,
    "model": "gpt-5.4-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 2006,
        "completion_tokens": 300,
        "total_tokens": 2306,
        "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 128, "audio_tokens": 0},
    },
    "service_tier": "default",
}
RESPONSES = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1793534400,
    "status": "completed",
    "model": "gpt-5.4",
    "output": [{"type": "web_search_call", "action": {"type": "search"}}, {"type": "message", "content": []}],
    "service_tier": "default",
    "usage": {
        "input_tokens": 36000,
        "input_tokens_details": {"cached_tokens": 32768, "cache_write_tokens": 0},
        "output_tokens": 2400,
        "output_tokens_details": {"reasoning_tokens": 2048},
        "total_tokens": 38400,
    },
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-5-5",
    "content": [{"type": "text", "text": "Hello"}],
    "usage": {
        "input_tokens": 3,
        "cache_creation_input_tokens": 700,
        "cache_read_input_tokens": 180321,
        "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 500},
        "output_tokens": 120,
        "service_tier": "standard",
        "server_tool_use": {"web_search_requests": 1},
    },
}
GEMINI = {
    "candidates": [{"content": {"parts": [{"text": "Hello"}]}, "finishReason": "STOP"}],
    "usageMetadata": {
        "promptTokenCount": 2050,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 50},
            {"modality": "AUDIO", "tokenCount": 2000},
        ],
        "cachedContentTokenCount": 1500,
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 1500}],
        "candidatesTokenCount": 120,
        "thoughtsTokenCount": 30,
        "totalTokenCount": 2200,
        "trafficType": "ON_DEMAND",
    },
    "modelVersion": "gemini-3.8-flash",
    "createTime": "2026-11-01T12:00:00.123456Z",
    "responseId": "r1",
}
CONVERSE = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}},
    "stopReason": "end_turn",
    "model": "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "usage": {
        "inputTokens": 1000,
        "outputTokens": 200,
        "totalTokens": 7200,
        "cacheReadInputTokens": 4000,
        "cacheWriteInputTokens": 2000,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 1500}, {"ttl": "5m", "inputTokens": 500}],
    },
}
CASES: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("OpenAI chat", CHAT, "openai", "openai.chat", "chat"),
    ("OpenAI responses", RESPONSES, "openai", "openai.responses", "responses"),
    ("Anthropic messages", MESSAGE, "anthropic", "anthropic.messages", "default"),
    ("Gemini generateContent", GEMINI, "google", "google.generate", "default"),
    ("Bedrock Converse", CONVERSE, "aws", "bedrock.converse", "default"),
]


def best_us(call: Callable[[], object]) -> float:
    timer = timeit.Timer(call)
    number = max(1, int(0.004 / (timer.timeit(200) / 200)))
    return min(timer.repeat(40, number)) / number * 1e6


def rival() -> Callable[..., object] | None:
    try:
        from genai_prices import extract_usage
    except ImportError:
        return None
    return extract_usage


def main() -> int:
    extract = rival()
    slowest = 0.0
    print(f"{'microseconds a response':26}{'detected':>10}{'api given':>11}{'genai-prices':>14}")
    for name, payload, provider, api, flavor in CASES:
        detected = best_us(lambda payload=payload: usage_from_response(payload, organization_id="org"))
        given = best_us(
            lambda payload=payload, provider=provider, api=api: usage_from_response(
                payload, provider=provider, api=api, organization_id="org"
            )
        )
        theirs = "not installed"
        if extract is not None:
            try:
                call = lambda payload=payload, provider=provider, flavor=flavor: extract(
                    payload, provider_id=provider, api_flavor=flavor
                )
                theirs = f"{best_us(call):.2f}"
            except Exception as error:
                theirs = type(error).__name__
        slowest = max(slowest, detected, given)
        print(f"{name:26}{detected:10.2f}{given:11.2f}{theirs:>14}")
    print(f"slowest {slowest:.2f} µs; the aim is {AIM_US:.0f} µs: {'met' if slowest <= AIM_US else 'MISSED'}")
    return 0 if slowest <= AIM_US else 1


if __name__ == "__main__":
    sys.exit(main())
