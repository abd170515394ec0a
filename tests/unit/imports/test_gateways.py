"""Exports of gateways and tracers, and spans."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import UsageRecord
from tests.unit.imports.files import lines, opened, priced, read

TRACE, SPAN = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b170"


LITELLM = {
    "request_id": "chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012",
    "call_type": "acompletion",
    "api_key": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
    "spend": 0.0075,
    "total_tokens": 1500,
    "prompt_tokens": 1000,
    "completion_tokens": 500,
    "startTime": "2026-03-10T02:40:21.204000Z",
    "endTime": "2026-03-10T02:40:22.204000Z",
    "model": "gpt-4o",
    "model_id": "abc",
    "custom_llm_provider": "openai",
    "cache_hit": "False",
    "request_tags": '["a", "b"]',
    "end_user": "u1",
    "team_id": "t1",
    "metadata": {"usage_object": {"prompt_tokens_details": {"cached_tokens": 400}}},
}


def test_litellm(tmp_path: Path) -> None:
    claude = {
        **LITELLM,
        "request_id": "chatcmpl-2",
        "custom_llm_provider": "anthropic",
        "model": "anthropic/claude-sonnet-4-5",
        "prompt_tokens": 3200,
        "total_tokens": 3700,
        "metadata": '{"usage_object": {"cache_read_input_tokens": 200, "cache_creation_input_tokens": 1500}}',
    }
    beside = {**claude, "request_id": "chatcmpl-3", "prompt_tokens": 1500, "total_tokens": 3700}
    hit = {**LITELLM, "request_id": "chatcmpl-4", "cache_hit": "True", "spend": 0.0}
    file = opened([LITELLM, claude, beside, hit])
    found = [item.record for item in file if isinstance(item.record, UsageRecord)]
    assert file.passed_over == 1
    first = found[0]
    assert (first.provider, first.model_id, first.cached_tokens) == ("openai", "gpt-4o", 400)
    assert first.idempotency_key == f"openai:{LITELLM['request_id']}"
    assert (first.reported_cost, first.latency_ms, first.tags) == (Decimal("0.0075"), 1000, ["a", "b"])
    for record in found[1:]:
        assert (record.provider, record.model_id) == ("anthropic", "claude-sonnet-4-5")
        assert (record.input_tokens, record.cached_tokens, record.cache_write_tokens) == (3200, 200, 1500)
    assert found[1].idempotency_key == "litellm:chatcmpl-2"
    # It has a spend of 0 where it knows no price.
    assert read([{**LITELLM, "spend": 0.0}])[0].reported_cost is None
    assert len(priced(tmp_path, [LITELLM, claude, beside, hit])[0]) == 3


def test_openrouter_activity() -> None:
    row = {
        "date": "2026-03-10",
        "model": "openai/gpt-4.1",
        "model_permaslug": "openai/gpt-4.1-2025-04-14",
        "endpoint_id": "550e8400-e29b-41d4-a716-446655440000",
        "provider_name": "OpenAI",
        "usage": 0.015,
        "byok_usage_inference": 0.012,
        "requests": 5,
        "prompt_tokens": 50,
        "completion_tokens": 125,
        "reasoning_tokens": 25,
    }
    [first, other] = read({"data": [row, {**row, "date": "2026-01-16 00:00:00"}]})
    assert (first.provider, first.model_id, first.request_count) == ("openrouter", "openai/gpt-4.1", 5)
    assert (first.input_tokens, first.output_tokens, first.reasoning_tokens) == (50, 125, 25)
    assert first.reported_cost == Decimal("0.027")
    assert other.timestamp == datetime(2026, 1, 16, tzinfo=UTC)
    assert other.idempotency_key != first.idempotency_key


GENERATION = {
    "id": "gen-1771967930-1gsys6ZhRaY0TPbuRsDR",
    "total_cost": 0.0015,
    "created_at": "2026-02-24T21:19:33.705Z",
    "model": "meta-llama/llama-4-scout",
    "is_byok": False,
    "cancelled": True,
    "provider_name": "Infermatic",
    "generation_time": 1200,
    "tokens_prompt": 65,
    "tokens_completion": 116,
    "native_tokens_prompt": 64,
    "native_tokens_completion": 98,
    "native_tokens_reasoning": 8,
    "native_tokens_cached": 4,
}


def test_openrouter_and_vercel_generations() -> None:
    vercel = {**GENERATION, "id": "gen_01ARZ3NDEKTSV4RRFFQ69G5FAV", "model": "anthropic/claude-sonnet-4"}
    own = {**GENERATION, "id": "gen-2", "is_byok": True, "upstream_inference_cost": 0.0012}
    [first] = read({"data": GENERATION})
    assert (first.input_tokens, first.cached_tokens, first.output_tokens, first.reasoning_tokens) == (
        64,
        4,
        98,
        8,
    )
    assert first.idempotency_key == f"openrouter:{GENERATION['id']}"
    assert (first.reported_cost, first.outcome.value) == (Decimal("0.0015"), "cancelled")
    [second, third] = read(lines({"data": vercel}, own))
    assert (second.provider, second.model_id) == ("anthropic", "claude-sonnet-4")
    assert third.reported_cost == Decimal("0.0027")


def test_openrouter_activity_csv() -> None:
    table = (
        "generation_id,created_at,cost_total,tokens_prompt,tokens_completion,tokens_reasoning,tokens_cached,"
        "model_permaslug,provider_name,cancelled,user\n"
        "gen-1,2026-03-10 02:40:21.204,0.00046,1200,90,0,1000,openai/gpt-4.1-mini,OpenAI,false,\n"
    )
    [record] = read(table.encode(), "openrouter_activity.csv")
    assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (1200, 1000, 90)
    assert record.reported_cost == Decimal("0.00046")
    assert record.idempotency_key == "openrouter:gen-1"


HELICONE = {
    "request_id": "9b0f1a52-0c6c-4c0e-8d0a-6d7e2c1c3f10",
    "response_id": "1b0f1a52-0c6c-4c0e-8d0a-6d7e2c1c3f10",
    "request_created_at": "2026-03-10T02:40:21.204+00:00",
    "response_status": 200,
    "request_model": "claude-sonnet-4-5",
    "response_model": "claude-sonnet-4-5-20250929",
    "provider": "ANTHROPIC",
    "prompt_tokens": 1500,
    "prompt_cache_read_tokens": 200,
    "prompt_cache_write_tokens": 1500,
    "completion_tokens": 500,
    "total_tokens": 3700,
    "delay_ms": 900,
    "request_user_id": "u1",
    "request_properties": {"team": "search"},
    "cache_reference_id": "00000000-0000-0000-0000-000000000000",
}


def test_helicone() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    body = {"id": "x", "object": "chat.completion", "model": "gpt-4o", "choices": [], "usage": usage}
    with_body = {**HELICONE, "request_id": "r2", "provider": "OPENAI", "response_body": body}
    cached = {**HELICONE, "request_id": "r3", "cache_reference_id": "1b0f1a52-0c6c-4c0e-8d0a-6d7e2c1c3f10"}
    file = opened({"data": [HELICONE, with_body, cached]})
    first, second = (item.record for item in file if isinstance(item.record, UsageRecord))
    assert (first.provider, first.model_id) == ("anthropic", "claude-sonnet-4-5-20250929")
    assert (first.input_tokens, first.cached_tokens, first.cache_write_tokens) == (3200, 200, 1500)
    assert (first.latency_ms, first.user_id, first.labels) == (900, "u1", {"team": "search"})
    assert (second.model_id, second.input_tokens) == ("gpt-4o", 10)


LANGFUSE = {
    "id": "obs-1",
    "traceId": "t-1",
    "type": "GENERATION",
    "name": "chat",
    "startTime": "2026-03-10T02:40:21.204Z",
    "endTime": "2026-03-10T02:40:22.204Z",
    "model": "gpt-4o",
    "usageDetails": {"input": 600, "input_cached_tokens": 400, "output": 480, "output_reasoning_tokens": 20},
    "costDetails": {"total": 0.1},
}


@pytest.mark.parametrize("total", [None, 1500])
def test_langfuse_details_add_up(total: int | None) -> None:
    details = dict(LANGFUSE["usageDetails"]) | ({"total": total} if total else {})  # type: ignore[call-overload]  # a dict
    trace = {
        "id": "t-1",
        "timestamp": "2026-03-10T02:40:21Z",
        "projectId": "p",
        "userId": "u",
        "sessionId": "s",
    }
    span = {**LANGFUSE, "id": "obs-2", "type": "SPAN"}
    for page in ({"data": [{**LANGFUSE, "usageDetails": details}, span], "meta": {}},):
        [record] = read(page)
        assert (record.provider, record.model_id) == ("openai", "gpt-4o")
        assert (record.input_tokens, record.cached_tokens) == (1000, 400)
        assert (record.output_tokens, record.reasoning_tokens) == (500, 20)
    [record] = read([{**trace, "observations": [LANGFUSE, span]}])
    assert (record.user_id, record.session_id, record.idempotency_key) == ("u", "s", "langfuse:obs-1")


def test_langfuse_details_that_lie_in_each_other_and_older_forms() -> None:
    inside = {"input": 1000, "input_cached_tokens": 400, "output": 500, "total": 1500}
    [record] = read([{**LANGFUSE, "usageDetails": inside}])
    assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (1000, 400, 500)
    older = {name: value for name, value in LANGFUSE.items() if name != "usageDetails"}
    for usage in (
        {"usage": {"input": 1000, "output": 500, "total": 1500, "unit": "TOKENS"}},
        {"promptTokens": 1000, "completionTokens": 500, "totalTokens": 1500},
        {"usage": {"promptTokens": 1000, "completionTokens": 500}},
    ):
        [record] = read([{**older, **usage}])
        assert (record.input_tokens, record.output_tokens) == (1000, 500)
    [record] = read([older])
    assert (record.input_tokens, record.output_tokens) == (None, None)


def test_langfuse_csv() -> None:
    table = (
        "id,trace_id,type,start_time,end_time,provided_model_name,usage_details\n"
        "o1,t1,GENERATION,2026-03-10 02:40:21.204,,gpt-4o,"
        '"{""input"":600,""input_cached_tokens"":400,""output"":5}"\n'
    )
    [record] = read(table.encode(), "export.csv")
    assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (1000, 400, 5)


def test_langsmith() -> None:
    run = {
        "id": "run-1",
        "trace_id": "t",
        "run_type": "llm",
        "start_time": "2026-03-10T02:40:21.204000",
        "end_time": "2026-03-10T02:40:22.204000",
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "total_tokens": 1500,
        "extra": {"metadata": {"ls_provider": "google_genai", "ls_model_name": "gemini-2.5-pro"}},
        "outputs": {
            "usage_metadata": {
                "input_tokens": 1000,
                "output_tokens": 500,
                "total_tokens": 1500,
                "input_token_details": {"cache_read": 400},
                "output_token_details": {"reasoning": 20},
            }
        },
    }
    file = opened(lines(run, {**run, "id": "run-0", "run_type": "chain"}))
    [record] = [item.record for item in file if isinstance(item.record, UsageRecord)]
    assert (record.provider, record.model_id, record.idempotency_key) == (
        "google",
        "gemini-2.5-pro",
        "langsmith:run-1",
    )
    assert (record.input_tokens, record.cached_tokens, record.reasoning_tokens) == (1000, 400, 20)
    assert file.passed_over == 1


def attributes(**values: Any) -> list[dict[str, Any]]:
    def value(given: Any) -> dict[str, Any]:
        return {"intValue": str(given)} if isinstance(given, int) else {"stringValue": given}

    return [{"key": name.replace("__", "."), "value": value(given)} for name, given in values.items()]


def span(number: int, parent: int, given: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "traceId": TRACE,
        "spanId": f"{number:016x}",
        "parentSpanId": f"{parent:016x}" if parent else "",
        "name": "x",
        "kind": 3,
        "startTimeUnixNano": "1773144000000000000",
        "endTimeUnixNano": "1773144002500000000",
        "attributes": given,
    }


def otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [{"spans": list(spans)}]}]}


def test_otlp_counts_calls_and_no_sums_of_them() -> None:
    counts = {"gen_ai__usage__input_tokens": 1000, "gen_ai__usage__output_tokens": 500}
    model = {"gen_ai__provider__name": "openai", "gen_ai__response__model": "gpt-4o"}
    file = opened(
        otlp(
            span(1, 0, attributes(gen_ai__operation__name="invoke_agent", **model, **counts)),
            span(2, 1, attributes(gen_ai__operation__name="chat", **model, **counts)),
            span(3, 1, attributes(gen_ai__operation__name="execute_tool", **model)),
            # Neither says what it is: the one above repeats the one below.
            span(4, 1, attributes(**model, **counts)),
            span(5, 4, attributes(**model, **counts)),
            span(6, 1, attributes(http__method="GET")),
        )
    )
    found = [item.record for item in file if isinstance(item.record, UsageRecord)]
    assert [record.span_id for record in found] == [f"{2:016x}", f"{5:016x}"]
    assert [record.idempotency_key for record in found] == [f"{TRACE}:{2:016x}", f"{TRACE}:{5:016x}"]
    assert found[0].timestamp == datetime(2026, 3, 10, 12, tzinfo=UTC)
    assert found[0].latency_ms == 2500


def test_openinference_in_every_form() -> None:
    nested = {
        "openinference": {"span": {"kind": "LLM"}},
        "llm": {
            "model_name": "claude-sonnet-4-5",
            "provider": "anthropic",
            "token_count": {
                "prompt": 3200,
                "completion": 500,
                "total": 3700,
                "prompt_details": {"cache_read": 200, "cache_write": 1500},
                "completion_details": {"reasoning": 20},
            },
        },
    }
    flat: dict[str, Any] = {
        "openinference.span.kind": "LLM",
        "llm.model_name": "claude-sonnet-4-5",
        "llm.provider": "anthropic",
        "llm.token_count.prompt": 3200,
        "llm.token_count.completion": 500,
        "llm.token_count.total": 3700,
        "llm.token_count.prompt_details.cache_read": 200,
        "llm.token_count.prompt_details.cache_write": 1500,
        "llm.token_count.completion_details.reasoning": 20,
    }
    head = {
        "context": {"trace_id": f"0x{TRACE}", "span_id": f"0x{SPAN}"},
        "start_time": "2026-03-10T12:00:00Z",
    }
    columns = {f"attributes.{name}": value for name, value in flat.items()}
    listed = attributes(**{name.replace(".", "__"): value for name, value in flat.items()})
    chain = {**head, "attributes": {"openinference.span.kind": "CHAIN", "llm.token_count.prompt": 3200}}
    for form in (
        lines({**head, "attributes": nested}),
        lines({**head, "attributes": flat}, chain),
        lines(
            {
                "context.trace_id": TRACE,
                "context.span_id": SPAN,
                "start_time": "2026-03-10T12:00:00Z",
                **columns,
            }
        ),
        json.dumps(otlp({**span(0, 0, listed), "spanId": SPAN})).encode(),
    ):
        [record] = read(form)
        assert (record.provider, record.model_id) == ("anthropic", "claude-sonnet-4-5")
        assert (record.input_tokens, record.cached_tokens, record.cache_write_tokens) == (3200, 200, 1500)
        assert (record.output_tokens, record.reasoning_tokens) == (500, 20)
        assert (record.trace_id, record.idempotency_key) == (TRACE, f"{TRACE}:{SPAN}")


def test_spans_of_the_ai_sdk_count_the_inner_call() -> None:
    usage = {
        "ai__usage__inputTokens": 1000,
        "ai__usage__outputTokens": 500,
        "ai__usage__cachedInputTokens": 400,
    }
    model = {"ai__model__id": "gpt-4o", "ai__model__provider": "openai.responses"}
    outer = attributes(ai__operationId="ai.generateText", **model, **usage)
    inner = attributes(
        ai__operationId="ai.generateText.doGenerate", gen_ai__usage__input_tokens=1000, **model, **usage
    )
    [record] = read(otlp(span(1, 0, outer), span(2, 1, inner)))
    assert (record.provider, record.model_id) == ("openai", "gpt-4o")
    assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (1000, 400, 500)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"data": {**GENERATION, "native_tokens_prompt": 1.5}}, "native_tokens_prompt"),
        ({"data": {**GENERATION, "total_cost": "$1"}}, "total_cost"),
        ([{**LITELLM, "prompt_tokens": "x"}], "prompt_tokens"),
        ([{**LITELLM, "prompt_tokens": -1}], "prompt_tokens"),
    ],
)
def test_wrong_counts_are_named(data: Any, field: str) -> None:
    [item] = opened(data)
    assert isinstance(item.record, str)
    assert f"{field} must be" in item.record


def test_set_wins_over_a_gateway() -> None:
    given = {"organization_id": "acme", "provider": "azure", "labels.team": "x"}
    [record] = read([LITELLM], given=given)
    assert (record.organization_id, record.provider) == ("acme", "azure")
    assert record.labels == {"team_id": "t1", "team": "x"}


@pytest.mark.parametrize("wrong", ["noon", 5, 1e300, True])
def test_a_time_that_is_none_is_refused(wrong: Any) -> None:
    [item] = opened([{**LITELLM, "startTime": wrong}])
    assert isinstance(item.record, str)
    assert "is not a time" in item.record


def test_a_wrong_span_harms_itself_only() -> None:
    counts = {
        "gen_ai__usage__input_tokens": 5,
        "gen_ai__response__model": "gpt-4o",
        "gen_ai__system": "openai",
    }
    good = span(1, 0, attributes(gen_ai__operation__name="chat", **counts))
    late = {**span(2, 0, good["attributes"]), "startTimeUnixNano": "noon"}
    wrong = span(
        3, 0, attributes(gen_ai__operation__name="chat", **{**counts, "gen_ai__usage__input_tokens": "x"})
    )
    items = list(opened(otlp(late, wrong, good)))
    assert [isinstance(item.record, UsageRecord) for item in items] == [False, False, True]
    assert str(items[0].record).startswith("resourceSpans[0].scopeSpans[0].spans[0]: ")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"spend": "1E+9999999"}, "spend must be an amount of money"),
        ({"metadata": '{"usage_object": {"cache_read_input_tokens": Infinity}}'}, "must be a whole number"),
        ({"request_tags": "[" * 100_000}, ""),
    ],
)
def test_a_value_that_no_arithmetic_takes_harms_only_its_row(wrong: dict[str, Any], reason: str) -> None:
    found = [item.record for item in opened([{**LITELLM, **wrong}, {**LITELLM, "request_id": "other"}])]
    assert isinstance(found[1], UsageRecord)
    assert reason in found[0] if isinstance(found[0], str) else not reason
