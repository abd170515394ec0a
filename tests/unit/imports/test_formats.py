"""Each kind of file that is known by its shape, on a small file of it: its records, and what they cost."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient, UsageRecord
from llm_cost_ops.cli import main
from tests.unit.imports.files import lines, opened, priced, read


def claude_line(message_id: str, output: int, second: int, **more: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": 3,
        "cache_creation_input_tokens": 2000,
        "cache_read_input_tokens": 20000,
        "cache_creation": {"ephemeral_5m_input_tokens": 1500, "ephemeral_1h_input_tokens": 500},
        "output_tokens": output,
        "service_tier": "standard",
    }
    message = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
    }
    return {
        "type": "assistant",
        "sessionId": "s-1",
        "uuid": f"{message_id}-{second}",
        "requestId": f"req_{message_id}",
        "timestamp": f"2026-03-10T02:40:{second:02}.204Z",
        "message": {**message, "content": [], "usage": usage},
        **more,
    }


CLAUDE = lines(
    {"type": "summary", "summary": "x", "leafUuid": "u"},
    {"type": "user", "sessionId": "s-1", "message": {"role": "user", "content": "hello"}},
    claude_line("msg_01A", 2, 21),
    claude_line("msg_01B", 7, 22, isSidechain=True),
    claude_line("msg_01A", 500, 23),
    {"type": "a kind of tomorrow", "sessionId": "s-1"},
    {**claude_line("msg_x", 0, 24), "message": {"model": "<synthetic>", "usage": {"input_tokens": 0}}},
    claude_line("msg_01A", 500, 23),
)


def test_a_message_that_was_cut_within_an_emoji() -> None:
    cut = [{"type": "text", "text": "cut \ud83d"}]
    line = claude_line("msg_01A", 500, 23)
    content = lines({**line, "message": {**line["message"], "content": cut}})
    assert b"\\ud83d" in content
    for document in (content, b"[\n" + content + b"]"):
        [record] = read(document)
        assert (record.idempotency_key, record.output_tokens) == ("anthropic:msg_01A", 500)


def test_a_key_that_is_not_a_number_is_not_the_key_of_all_such_rows() -> None:
    row = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 10, "output_tokens": 1}
    content = lines({**row, "idempotency_key": float("nan")}, {**row, "user_id": float("nan")}, row)
    first, second, third = (item.record for item in opened(content))
    assert (first, second) == (
        "idempotency_key: expected text, got an object",
        "user_id: expected text, got an object",
    )
    assert isinstance(third, UsageRecord)


def test_claude_code(tmp_path: Path) -> None:
    file = opened(CLAUDE)
    found = {
        item.record.idempotency_key: item.record for item in file if isinstance(item.record, UsageRecord)
    }
    assert sorted(found) == ["anthropic:msg_01A", "anthropic:msg_01B"]
    record = found["anthropic:msg_01A"]
    assert (record.input_tokens, record.cached_tokens, record.cache_write_tokens) == (22003, 20000, 2000)
    assert (record.cache_write_extended_tokens, record.output_tokens) == (500, 500)
    assert record.session_id == "s-1"
    assert record.timestamp == datetime(2026, 3, 10, 2, 40, 23, 204000, tzinfo=UTC)
    assert file.notes == ["Claude Code session log"]
    assert file.passed_over == 4
    records, cost = priced(tmp_path, CLAUDE, "session.jsonl")
    assert len(records) == 2
    # $3 a million in, 0.30 read, 3.75 and 6 written, 15 out.
    each = 3 * 3 + 20000 * Decimal("0.3") + 1500 * Decimal("3.75") + 500 * 6
    assert cost == (2 * each + (500 + 7) * 15) / 1_000_000


def token_count(
    total: tuple[int, int, int, int] | None, last: tuple[int, int, int, int] | None
) -> dict[str, Any]:
    def usage(counts: tuple[int, int, int, int]) -> dict[str, int]:
        names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens")
        return {**dict(zip(names, counts, strict=True)), "total_tokens": counts[0] + counts[2]}

    info = None
    if total is not None:
        info = {"total_token_usage": usage(total), "model_context_window": 272000}
        if last is not None:
            info["last_token_usage"] = usage(last)
    payload = {"type": "token_count", "info": info, "rate_limits": {}}
    return {"timestamp": "2026-03-10T02:40:21.204Z", "type": "event_msg", "payload": payload}


def test_codex(tmp_path: Path) -> None:
    first, second, third = (1000, 200, 50, 20), (2500, 1200, 80, 20), (100, 0, 9, 0)
    log = lines(
        {"timestamp": "2026-03-10T02:40:20Z", "type": "session_meta", "payload": {"id": "sess-1"}},
        {"timestamp": "2026-03-10T02:40:20Z", "type": "turn_context", "payload": {"model": "gpt-5-codex"}},
        token_count(None, None),
        token_count(first, first),
        token_count(first, first),
        token_count(second, (1500, 1000, 30, 0)),
        {"timestamp": "2026-03-10T02:41:20Z", "type": "turn_context", "payload": {"model": "gpt-5"}},
        token_count((2600, 1200, 89, 20), None),
    )
    found = read(log)
    counts = [
        (r.model_id, r.input_tokens, r.cached_tokens, r.output_tokens, r.reasoning_tokens) for r in found
    ]
    assert counts == [
        ("gpt-5-codex", 1000, 200, 50, 20),
        ("gpt-5-codex", 1500, 1000, 30, 0),
        ("gpt-5", *third),
    ]
    assert len({r.idempotency_key for r in found}) == 3
    records, _ = priced(tmp_path, log, "rollout.jsonl")
    assert len(records) == 3
    later = token_count(first, first)
    later["payload"]["info"]["last_token_usage"]["cache_write_input_tokens"] = 300
    [record] = read(lines(later), given={"model_id": "gpt-5"})
    assert (record.cached_tokens, record.cache_write_tokens) == (200, 300)


def test_codex_forks_repeat_calls_that_count_once(tmp_path: Path) -> None:
    def meta(name: str, **more: str) -> dict[str, Any]:
        return {"timestamp": "2026-03-10T02:40:20Z", "type": "session_meta", "payload": {"id": name, **more}}

    model = {"timestamp": "2026-03-10T02:40:20Z", "type": "turn_context", "payload": {"model": "gpt-5"}}
    calls = [(1000, 200, 50, 20), (1500, 1000, 30, 0), (1700, 1500, 40, 10), (1900, 1700, 60, 0)]
    sums = [tuple(map(sum, zip(*calls[:number], strict=True))) for number in range(1, 5)]
    counts = [token_count(total, call) for total, call in zip(sums, calls, strict=True)]
    parent = [meta("p"), model, *counts[:2]]
    # The lines of the parent come with the times of the fork.
    copied = [{**line, "timestamp": "2026-04-01T00:00:00Z"} for line in parent]
    fork = [meta("f", forked_from_id="p"), *copied, model, counts[2]]
    again = [meta("g", forked_from_id="f"), *fork, meta("g", forked_from_id="f"), counts[3]]
    subagent = [meta("s", forked_from_id="p"), meta("p"), model, token_count((70, 0, 7, 0), (70, 0, 7, 0))]
    for logs in ([parent, fork, again, subagent], [again, subagent, fork, parent]):
        database = str(tmp_path / f"{len(logs[0])}.db")
        for number, log in enumerate(logs):
            path = tmp_path / f"rollout-{number}.jsonl"
            path.write_bytes(lines(*log))
            assert main(["import", str(path), "--db", database]) == 0
        with CostOpsClient(base_url=f"sqlite:///{database}") as client:
            records = list(client.usage.list())
        assert sorted(record.input_tokens or 0 for record in records) == [70, 1000, 1500, 1700, 1900]
        # All in one stream, as `cat` gives them.
        together = read(lines(*(line for log in logs for line in log)))
        assert {record.idempotency_key for record in together} == {r.idempotency_key for r in records}


@pytest.mark.parametrize("last", [None, (200, 0, 20, 0)])
def test_codex_logs_in_one_stream_have_sums_of_their_own(last: tuple[int, int, int, int] | None) -> None:
    model = {"timestamp": "2026-03-10T02:40:20Z", "type": "turn_context", "payload": {"model": "gpt-5"}}
    log = [model, token_count((200, 0, 20, 0), last)]
    metas = [{**model, "type": "session_meta", "payload": {"id": name}} for name in "ab"]
    found = read(lines(*(line for meta in metas for line in [meta, *log])))
    assert [(r.session_id, r.input_tokens, r.output_tokens) for r in found] == [
        ("a", 200, 20),
        ("b", 200, 20),
    ]


def test_codex_without_a_model_says_what_to_give() -> None:
    log = lines(token_count((1, 0, 1, 0), None))
    [item] = opened(log)
    assert isinstance(item.record, str)
    assert "--set model_id=" in item.record
    [record] = read(log, given={"model_id": "gpt-5"})
    assert record.model_id == "gpt-5"


def openai_page(*results: dict[str, Any]) -> dict[str, Any]:
    bucket = {"object": "bucket", "start_time": 1773100800, "end_time": 1773187200, "results": list(results)}
    return {"object": "page", "data": [bucket], "has_more": False, "next_page": None}


def test_openai_usage(tmp_path: Path) -> None:
    completions = {
        "object": "organization.usage.completions.result",
        "input_tokens": 10000,
        "input_cached_tokens": 4000,
        "output_tokens": 500,
        "input_audio_tokens": 100,
        "input_cached_audio_tokens": 50,
        "output_audio_tokens": 0,
        "num_model_requests": 5,
        "project_id": "proj_1",
        "user_id": None,
        "api_key_id": "key_1",
        "model": "gpt-4o-audio-preview",
        "batch": False,
        "service_tier": "default",
    }
    batch = {**completions, "model": "gpt-4o-2024-08-06", "batch": True, "input_audio_tokens": 0}
    batch |= {"input_cached_audio_tokens": 0, "input_cached_tokens": 0}
    embeddings = {
        "object": "organization.usage.embeddings.result",
        "input_tokens": 9,
        "num_model_requests": 2,
    }
    speech = {"object": "organization.usage.audio_speeches.result", "characters": 45, "num_model_requests": 1}
    heard = {
        "object": "organization.usage.audio_transcriptions.result",
        "seconds": 20,
        "num_model_requests": 3,
    }
    code = {"object": "organization.usage.code_interpreter_sessions.result", "num_sessions": 1}
    page = openai_page(
        completions,
        batch,
        {**embeddings, "model": "text-embedding-3-small"},
        {**speech, "model": "tts-1"},
        {**heard, "model": "whisper-1"},
        code,
    )
    found = read(page)
    first = found[0]
    assert (first.input_tokens, first.cached_tokens, first.output_tokens) == (10000, 4000, 500)
    assert first.modality is not None
    assert (first.modality.input_audio_tokens, first.modality.cached_audio_tokens) == (150, 50)
    assert (first.request_count, first.project_id, first.labels) == (5, "proj_1", {"api_key_id": "key_1"})
    assert first.timestamp == datetime(2026, 3, 10, tzinfo=UTC)
    assert (found[1].processing, found[1].service_tier) == ("batch", "")
    assert (found[2].input_tokens, found[2].operation.value) == (9, "embeddings")
    assert [dict(r.meters) for r in found[3:]] == [
        {"characters": 45},
        {"audio_ms": 20000},
        {"code_interpreter_sessions": 1},
    ]
    # The same rows on another page, in another order, are the same rows.
    again = read(openai_page(batch, completions))
    assert [r.idempotency_key for r in again] == [found[1].idempotency_key, first.idempotency_key]
    records, cost = priced(tmp_path, openai_page(batch))
    # Half of $2.50 and $10 a million.
    assert cost == (10000 * Decimal("1.25") + 500 * 5) / 1_000_000
    assert records[0]["request_count"] == 5


def test_openai_usage_that_is_not_grouped_by_model_is_refused() -> None:
    row = {
        "object": "organization.usage.completions.result",
        "input_tokens": 1,
        "output_tokens": 1,
        "model": None,
    }
    [item] = opened(openai_page(row))
    assert isinstance(item.record, str)
    assert "data[0].results[0] does not say the model" in item.record
    assert "group_by=model" in item.record


def test_openai_costs() -> None:
    row = {"object": "organization.costs.result", "amount": {"value": 0.06, "currency": "usd"}}
    found = read(
        openai_page({**row, "line_item": "Image models", "project_id": "p"}, {**row, "line_item": None})
    )
    assert [(r.model_id, r.reported_cost, r.reported_currency) for r in found] == [
        ("Image models", Decimal("0.06"), "USD"),
        ("all models", Decimal("0.06"), "USD"),
    ]
    assert all(r.input_tokens is None and r.output_tokens is None for r in found)


def anthropic_page(*results: dict[str, Any]) -> dict[str, Any]:
    day = {
        "starting_at": "2026-03-10T00:00:00Z",
        "ending_at": "2026-03-11T00:00:00Z",
        "results": list(results),
    }
    return {"data": [day], "has_more": False, "next_page": None}


ANTHROPIC_ROW = {
    "uncached_input_tokens": 1500,
    "cache_creation": {"ephemeral_1h_input_tokens": 1000, "ephemeral_5m_input_tokens": 500},
    "cache_read_input_tokens": 200,
    "output_tokens": 500,
    "server_tool_use": {"web_search_requests": 10},
    "api_key_id": "apikey_1",
    "workspace_id": "wrkspc_1",
    "model": "claude-sonnet-4-5-20250929",
    "service_tier": "standard",
    "context_window": "0-200k",
}


def test_anthropic_usage_report(tmp_path: Path) -> None:
    many = {
        **ANTHROPIC_ROW,
        "uncached_input_tokens": 900_000,
        "service_tier": "batch",
        "server_tool_use": None,
    }
    long = {**many, "context_window": "200k-1M", "service_tier": "standard"}
    found = read(anthropic_page(ANTHROPIC_ROW, many, long))
    first = found[0]
    assert (first.input_tokens, first.cached_tokens, first.cache_write_tokens) == (3200, 200, 1500)
    assert (first.cache_write_extended_tokens, first.output_tokens) == (1000, 500)
    assert (first.meters, first.project_id) == ({"web_searches": 10}, "wrkspc_1")
    # A sum of calls below 200,000 tokens each is none above it: five calls at least.
    assert [(r.request_count, r.processing) for r in found] == [(None, ""), (5, "batch"), (None, "")]
    assert len({r.idempotency_key for r in found}) == 3
    _, cost = priced(tmp_path, anthropic_page(ANTHROPIC_ROW))
    tokens = 1500 * 3 + 500 * Decimal("3.75") + 1000 * 6 + 200 * Decimal("0.3") + 500 * 15
    assert cost == tokens / 1_000_000 + Decimal("0.1")


def test_anthropic_cost_report_is_in_cents() -> None:
    row = {
        "currency": "USD",
        "amount": "123.78912",
        "workspace_id": None,
        "description": "Claude Sonnet 4 Usage",
    }
    row |= {
        "cost_type": "tokens",
        "context_window": "0-200k",
        "model": "claude-sonnet-4",
        "token_type": "output_tokens",
    }
    [record] = read(anthropic_page(row))
    assert (record.reported_cost, record.reported_currency) == (Decimal("1.2378912"), "USD")
    assert record.labels == {"cost_type": "tokens", "token_type": "output_tokens"}


CONSOLE = """\
usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,\
usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,\
usage_output_tokens,web_search_count,inference_geo,speed
2026-03-10,claude-sonnet-4-5-20250929,key,Default,standard,≤ 200k,1500,500,1000,200,500,0,not_available,
2026-03-10,claude-sonnet-4-5-20250929,key,Default,batch,≤ 200k,1500,500,1000,200,500,0,not_available,
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_anthropic_console_csv(tmp_path: Path, encoding: str) -> None:
    records, cost = priced(tmp_path, CONSOLE.encode(encoding), "claude_api_tokens.csv")
    assert [record["input_tokens"] for record in records] == [3200, 3200]
    assert {record.get("processing") for record in records} == {None, "batch"}
    assert cost == Decimal("0.019935") * 3 / 2


def test_anthropic_console_costs() -> None:
    table = (
        "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,cost_type\n"
        "2026-03-10,Claude Sonnet 4.5,Default,key,standard,≤ 200k,output,0.53,token\n"
    )
    [record] = read(table.encode(), "costs.csv")
    assert (record.reported_cost, record.model_id) == (Decimal("0.53"), "Claude Sonnet 4.5")


def test_set_wins_over_what_a_known_file_says() -> None:
    given = {"organization_id": "acme", "provider": "azure", "labels.team": "x", "timestamp": "2026-01-01"}
    for data, name in (
        (CLAUDE, ""),
        (CONSOLE.encode(), "c.csv"),
        (openai_page_of_one(), ""),
    ):
        for record in read(data, name, given=given):
            assert (record.organization_id, record.provider) == ("acme", "azure")
            assert record.labels["team"] == "x"
            assert record.timestamp == datetime(2026, 1, 1, tzinfo=UTC)


def openai_page_of_one() -> dict[str, Any]:
    row = {"object": "organization.usage.completions.result", "input_tokens": 1, "output_tokens": 1}
    return openai_page({**row, "model": "gpt-4o"})


def test_wrong_counts_of_known_files_are_named_by_their_place() -> None:
    wrong = [
        (
            openai_page({**openai_page_of_one()["data"][0]["results"][0], "input_tokens": "many"}),
            "input_tokens",
        ),
        (anthropic_page({**ANTHROPIC_ROW, "output_tokens": -1}), "output_tokens"),
    ]
    for data, field in wrong:
        [item] = opened(data)
        assert isinstance(item.record, str)
        assert f"{field} must be" in item.record
