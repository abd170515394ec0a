"""What exports tell beside the totals of a row, or in other units, is read."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import UsageRecord
from tests.unit.imports.files import opened, priced, read
from tests.unit.imports.test_formats import ANTHROPIC_ROW, anthropic_page, openai_page
from tests.unit.imports.test_gateways import LITELLM

COMPLETIONS = {
    "object": "organization.usage.completions.result",
    "input_tokens": 10_000,
    "output_tokens": 500,
    "num_model_requests": 5,
    "model": "gpt-4o-2024-08-06",
    "batch": False,
    "service_tier": "default",
}
OBSERVATION = {
    "id": "obs-1",
    "traceId": "trace-1",
    "type": "GENERATION",
    "model": "gpt-4o",
    "startTime": "2026-03-10T12:00:00Z",
}
LANGSMITH = {
    "id": "run-1",
    "run_type": "llm",
    "start_time": "2026-03-10T12:00:00Z",
    "extra": {"metadata": {"ls_model_name": "claude-sonnet-4-5", "ls_provider": "anthropic"}},
}


def litellm(usage: dict[str, Any], **row: Any) -> dict[str, Any]:
    return {**LITELLM, "metadata": {"usage_object": usage}, **row}


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (
            litellm({"server_tool_use": {"web_search_requests": 2}}, custom_llm_provider="anthropic"),
            {"meters": {"web_searches": 2}},
        ),
        (litellm({"inference_geo": "us", "speed": "fast"}), {"region": "us", "speed": "fast"}),
        (
            # The name that older versions have for the same.
            {**LITELLM, "metadata": {"additional_usage_values": {"cache_read_input_tokens": 300}}},
            {"cached_tokens": 300, "input_tokens": 1000},
        ),
        (
            litellm({}, call_type="aimage_generation", prompt_tokens=0, completion_tokens=0, spend=0.04),
            {"input_tokens": None, "output_tokens": None, "reported_cost": Decimal("0.04")},
        ),
        (
            openai_page(
                {**COMPLETIONS, "input_cache_write_30m_tokens": 50, "input_cache_write_12h_tokens": 70}
            ),
            {"cache_write_tokens": 120, "cache_write_extended_tokens": 70, "quality": "unspecified"},
        ),
        (openai_page({**COMPLETIONS, "batch": None}), {"quality": "estimated"}),
        (openai_page({**COMPLETIONS, "service_tier": None}), {"quality": "estimated"}),
        (openai_page(COMPLETIONS), {"quality": "unspecified"}),
        (
            openai_page({**COMPLETIONS, "object": "organization.usage.decisions.result", "output_tokens": 0}),
            {"input_tokens": 10_000, "output_tokens": 0, "quality": "unspecified", "request_count": 5},
        ),
        (
            openai_page(
                {
                    **COMPLETIONS,
                    "object": "organization.usage.decisions.result",
                    "output_tokens": 0,
                    "input_cached_tokens": 400,
                }
            ),
            {"input_tokens": 10_000, "cached_tokens": 400, "quality": "estimated"},
        ),
        (anthropic_page(ANTHROPIC_ROW), {"quality": "unspecified"}),
        (anthropic_page({**ANTHROPIC_ROW, "service_tier": None}), {"quality": "estimated"}),
        (
            openai_page({"object": "organization.usage.web_searches.result", "num_requests": 7}),
            {"meters": {"web_searches": 7}, "model_id": "web_searches"},
        ),
        (
            openai_page({"object": "organization.usage.file_searches.result", "num_requests": 7}),
            {"meters": {"file_searches": 7}},
        ),
        (
            {**OBSERVATION, "usageDetails": {"input": 10, "output": 5, "web_search_requests": 2}},
            {"input_tokens": 10, "output_tokens": 5, "meters": {"web_search_requests": 2}},
        ),
        (
            {**OBSERVATION, "usage": {"input": 100, "output": 20, "unit": "CHARACTERS"}},
            {"input_tokens": None, "output_tokens": None, "meters": {"characters": 120}},
        ),
        (
            {**OBSERVATION, "usage": {"input": 3, "total": 3, "unit": "SECONDS"}},
            {"input_tokens": None, "meters": {"audio_ms": 3000}},
        ),
        (
            {
                **LANGSMITH,
                "outputs": {
                    "usage_metadata": {
                        "input_tokens": 1000,
                        "output_tokens": 100,
                        "total_tokens": 1100,
                        "input_token_details": {
                            "cache_creation": 0,
                            "ephemeral_5m_input_tokens": 200,
                            "ephemeral_1h_input_tokens": 300,
                        },
                    }
                },
            },
            {"input_tokens": 1000, "cache_write_tokens": 500, "cache_write_extended_tokens": 300},
        ),
    ],
    ids=[
        "litellm searches",
        "litellm speed",
        "litellm before usage_object",
        "litellm images",
        "openai cache writes",
        "openai without batch",
        "openai without tier",
        "openai with both",
        "openai decisions",
        "openai cached decisions",
        "anthropic with tier",
        "anthropic without tier",
        "openai searches",
        "openai file searches",
        "langfuse meters",
        "langfuse characters",
        "langfuse seconds",
        "langsmith cache writes",
    ],
)
def test_it_is_read(row: dict[str, Any], wanted: dict[str, Any]) -> None:
    [record] = read([row])
    assert {name: getattr(record, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("told", "written", "quality"),
    [
        # As pages tell it since they have the part of 30 minutes: `input_cache_write_tokens` is both.
        ((1_000_000, 600_000, 400_000, None), 1_000_000, "unspecified"),
        # As pages told it before: `input_cache_write_tokens` was the part of 30 minutes.
        ((100_000, None, 400_000, None), 500_000, "unspecified"),
        ((600_000, None, 400_000, 500_000), 1_000_000, "unspecified"),
        ((600_000, None, None, None), 600_000, "unspecified"),
        # The input that was not cached says that it is both, as does a sum that the input has no room for.
        ((600_000, None, 400_000, 900_000), 600_000, "unspecified"),
        ((1_400_000, None, 400_000, None), 1_400_000, "unspecified"),
        # Nothing says which: the larger one, and not for sure.
        ((600_000, None, 400_000, None), 1_000_000, "estimated"),
    ],
)
def test_cache_writes_of_openai_pages(
    told: tuple[int | None, ...], written: int, quality: str, tmp_path: Path
) -> None:
    names = ("input_cache_write_tokens", "input_cache_write_30m_tokens", "input_cache_write_12h_tokens")
    row = dict(zip((*names, "input_uncached_tokens"), told, strict=True))
    row |= {"input_tokens": 1_600_000, "input_cached_tokens": 100_000, "model": "gpt-5.6-sol"}
    page = openai_page({**COMPLETIONS, **row})
    [record] = read(page)
    assert (record.cache_write_tokens, record.quality) == (written, quality)
    assert record.cache_write_extended_tokens == (told[2] or 0)
    assert len(priced(tmp_path, page)[0]) == 1


XAI = {"num_sources_used": 0, "server_side_tool_usage_details": {"web_search_calls": 2, "x_search_calls": 1}}


@pytest.mark.parametrize("mirror", [{}, {"web_search_requests": 2}, {"web_search_requests": 3}])
@pytest.mark.parametrize("ticks", [{}, {"cost_in_usd_ticks": 150_250_000}, {"cost_in_usd_ticks": None}])
@pytest.mark.parametrize("spend", [0.0, 0.015025])
def test_searches_of_grok_through_litellm_count_once(
    mirror: dict[str, int], ticks: dict[str, int], spend: float
) -> None:
    usage = {"prompt_tokens_details": {"text_tokens": 100, **mirror}, **XAI, **ticks}
    [record] = read([litellm(usage, model="xai/grok-4", custom_llm_provider="xai", spend=spend)])
    assert record.meters == {"web_searches": 2, "social_searches": 1}
    # What was charged is the spend of the row, whatever the answer said.
    assert record.reported_cost == (Decimal(str(spend)) or None)
    sources = {"num_sources_used": 3, "prompt_tokens_details": {"web_search_requests": 3}, **ticks}
    [record] = read([litellm(sources, model="xai/grok-3", custom_llm_provider="xai", spend=spend)])
    assert record.meters == {"search_sources": 3}
    [record] = read([litellm({"prompt_tokens_details": {"web_search_requests": 3}, "num_sources_used": 0})])
    assert record.meters == {"web_searches": 3}


@pytest.mark.parametrize("total", ["total", "total_tokens", "Total", "totalTokens"])
@pytest.mark.parametrize(
    "names", [("input", "output"), ("prompt_tokens", "completion_tokens"), ("Input", "Output")]
)
@pytest.mark.parametrize("inside", [True, False])
def test_a_total_of_langfuse_is_no_part_of_it(total: str, names: tuple[str, str], inside: bool) -> None:
    given, returned = names
    details = {given: 100 if inside else 60, "input_cached_tokens": 40, returned: 50, total: 150}
    [record] = read([{**OBSERVATION, "usageDetails": details}])
    assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (100, 40, 50)


def test_totals_of_langfuse_in_two_spellings_are_one() -> None:
    details = {"input": 100, "prompt_tokens": 100, "output": 50, "completion_tokens": 50, "total_tokens": 150}
    [record] = read([{**OBSERVATION, "usageDetails": details}])
    assert (record.input_tokens, record.output_tokens) == (100, 50)


def test_images_and_audio_of_openai_pages() -> None:
    row = {
        **COMPLETIONS,
        "input_cached_tokens": 300,
        "input_image_tokens": 2000,
        "input_cached_image_tokens": 100,
        "input_audio_tokens": 50,
        "output_image_tokens": 400,
    }
    [record] = read(openai_page(row))
    seen = record.modality
    assert seen is not None
    assert (seen.input_image_tokens, seen.cached_image_tokens, seen.output_image_tokens) == (2100, 100, 400)
    assert seen.input_audio_tokens == 50


def test_rows_that_differ_in_any_group_are_rows_of_their_own() -> None:
    search = {"object": "organization.usage.web_searches.result", "num_requests": 7}
    files = {"object": "organization.usage.file_searches.result", "num_requests": 7}
    rows = [{**search, "context_level": level} for level in ("low", "high", None)]
    rows += [{**files, "vector_store_id": store} for store in ("vs_1", "vs_2")]
    assert len({record.idempotency_key for record in read(openai_page(*rows))}) == 5


def test_audio_of_helicone() -> None:
    row = {
        "request_id": "req-1",
        "request_created_at": "2026-03-10T12:00:00Z",
        "provider": "OPENAI",
        "model": "gpt-4o-audio-preview",
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_audio_tokens": 60,
        "completion_audio_tokens": 40,
    }
    [record] = read([row])
    assert record.modality is not None
    assert (record.modality.input_audio_tokens, record.modality.output_audio_tokens) == (60, 40)


def test_a_search_count_that_is_none_harms_only_its_row() -> None:
    wrong = {**ANTHROPIC_ROW, "server_tool_use": {"web_search_requests": "x"}}
    first, second = (item.record for item in opened(anthropic_page(wrong, ANTHROPIC_ROW)))
    assert str(first).startswith("data[0].results[0]: web_search_requests must be a whole number")
    assert isinstance(second, UsageRecord)


def test_an_image_through_litellm_costs_what_it_states(tmp_path: Path) -> None:
    row = litellm({}, model="gpt-4o", prompt_tokens=0, completion_tokens=0, total_tokens=0, spend=0.04)
    records, cost = priced(tmp_path, [row])
    assert (cost, records[0]["cost_status"]) == (Decimal("0.04"), "reported")
