"""docs/what-we-read.md says what these samples show: each is read in every form that its row names.

`python -m tests.unit.normalizers.test_what_we_read` writes the page anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_cost_ops import usage_from_response
from llm_cost_ops.normalizers import APIS
from tests.unit.normalizers.bodies import objects

PAGE = Path(__file__).parents[3] / "docs/what-we-read.md"
FORMS = ("plain", "stream", "SDK object", "batch")
COUNTS = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "cache_write_extended_tokens",
    "reasoning_tokens",
)

CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 40, "audio_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 3},
}


def chat(usage=CHAT_USAGE, **more):
    return {"id": "c1", "object": "chat.completion", "model": "m", "choices": [], "usage": usage, **more}


def chunks(body):
    first = {**body, "object": "chat.completion.chunk", "usage": None}
    return [first, {**first, "usage": body["usage"]}]


def openai_batch(body):
    return {"custom_id": "a", "response": {"status_code": 200, "body": body}}


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "model": "claude-opus-4-7",
    "usage": {
        "input_tokens": 3,
        "cache_read_input_tokens": 40,
        "cache_creation_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 5},
        "output_tokens": 12,
        "output_tokens_details": {"thinking_tokens": 4},
        "server_tool_use": {"web_search_requests": 1},
    },
}
GEMINI = {
    "modelVersion": "gemini-3-flash",
    "candidates": [{"groundingMetadata": {"webSearchQueries": ["x"]}}],
    "usageMetadata": {
        "promptTokenCount": 50,
        "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 20}],
        "cachedContentTokenCount": 10,
        "candidatesTokenCount": 12,
        "thoughtsTokenCount": 3,
        "totalTokenCount": 65,
    },
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "model": "gpt-5.4",
    "output": [{"type": "web_search_call"}, {"type": "file_search_call"}, {"type": "code_interpreter_call"}],
    "usage": {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 8},
        "output_tokens": 50,
        "output_tokens_details": {"reasoning_tokens": 20},
        "total_tokens": 150,
    },
}
CONVERSE = {
    "output": {},
    "stopReason": "end_turn",
    "usage": {
        "inputTokens": 10,
        "outputTokens": 5,
        "cacheReadInputTokens": 4,
        "cacheWriteInputTokens": 3,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 2}, {"ttl": "5m", "inputTokens": 1}],
    },
}
COHERE = {
    "id": "c1",
    "usage": {"billed_units": {"input_tokens": 9, "output_tokens": 4}, "tokens": {"input_tokens": 12}},
}
LLAMA = {"generation": "x", "prompt_token_count": 9, "generation_token_count": 4}
OLLAMA = {"model": "llama3.2", "done": True, "prompt_eval_count": 26, "eval_count": 9}
INTERACTION = {
    "object": "interaction",
    "id": "i1",
    "model": "gemini-3-flash",
    "steps": [{"type": "google_search_call", "arguments": {"queries": ["x"]}}],
    "usage": {
        "total_input_tokens": 5,
        "total_output_tokens": 2,
        "total_thought_tokens": 3,
        "total_cached_tokens": 1,
    },
}
XAI = chat(
    {
        **CHAT_USAGE,
        "total_tokens": 170,
        "cost_in_usd_ticks": 5_000_000,
        "server_side_tool_usage_details": {"web_search_calls": 1, "x_search_calls": 2},
    }
)
PERPLEXITY = chat(
    {**CHAT_USAGE, "citation_tokens": 6, "cost": {"total_cost": 0.01}}, model="sonar-deep-research"
)
OPENROUTER = chat({**CHAT_USAGE, "cost": 0.01, "server_tool_use": {"web_search_requests": 1}})
DEEPSEEK = chat(
    {**CHAT_USAGE, "prompt_cache_hit_tokens": 40, "prompt_cache_miss_tokens": 60, "total_tokens": 150}
)
GROQ = chat(usage_breakdown={"models": [{"model": "a"}, {"model": "b"}]})
IMAGE = {
    "created": 1793534400,
    "data": [{}],
    "usage": {"input_tokens": 9, "output_tokens": 80, "input_tokens_details": {"image_tokens": 4}},
}
TRANSCRIPT = {
    "text": "x",
    "usage": {
        "type": "tokens",
        "input_tokens": 9,
        "output_tokens": 4,
        "input_token_details": {"audio_tokens": 8},
    },
}
SPEECH = {"type": "speech.audio.done", "usage": {"input_tokens": 9, "output_tokens": 80}}
REALTIME = {
    "object": "realtime.response",
    "id": "r1",
    "usage": {
        "input_tokens": 9,
        "output_tokens": 8,
        "input_token_details": {"audio_tokens": 4, "cached_tokens": 2},
        "output_token_details": {"audio_tokens": 6},
    },
}
OCR = {"model": "mistral-ocr", "pages": [], "usage_info": {"pages_processed": 3}}
EMBEDDINGS = {"object": "list", "data": [], "model": "m", "usage": {"prompt_tokens": 9, "total_tokens": 9}}
SPAN = {
    "gen_ai.request.model": "m",
    "gen_ai.usage.input_tokens": 10,
    "gen_ai.usage.output_tokens": 5,
    "gen_ai.usage.cache_read.input_tokens": 4,
    "gen_ai.usage.reasoning.output_tokens": 2,
}
VERCEL = {"usage": {"inputTokens": 12, "outputTokens": 5, "reasoningTokens": 2, "cachedInputTokens": 8}}
GENERIC = {"usage": {"input_tokens": 12, "output_tokens": 5, "cached_tokens": 3, "pages": 2}}

# Provider, API, its title, a whole answer, its events, and its line in a batch's results.
ROWS = (
    ("openai", "openai.chat", "Chat Completions", chat(), chunks(chat()), openai_batch(chat())),
    (
        "openai",
        "openai.responses",
        "Responses",
        RESPONSE,
        [{"type": "response.completed", "response": RESPONSE}],
        openai_batch(RESPONSE),
    ),
    ("openai", "openai.embeddings", "Embeddings", EMBEDDINGS, None, openai_batch(EMBEDDINGS)),
    (
        "openai",
        "openai.transcription",
        "Transcription",
        TRANSCRIPT,
        [{"type": "transcript.text.done", **TRANSCRIPT}],
        None,
    ),
    ("openai", "openai.speech", "Speech", SPEECH, [SPEECH], None),
    ("openai", "openai.images", "Images", IMAGE, None, None),
    (
        "openai",
        "openai.realtime",
        "Realtime",
        REALTIME,
        [{"type": "response.done", "response": REALTIME}],
        None,
    ),
    ("azure", "azure.chat", "Chat Completions", chat(), chunks(chat()), openai_batch(chat())),
    (
        "anthropic",
        "anthropic.messages",
        "Messages",
        MESSAGE,
        [
            {
                "type": "message_start",
                "message": {**MESSAGE, "usage": {"input_tokens": 3, "output_tokens": 1}},
            },
            {"type": "message_delta", "usage": MESSAGE["usage"]},
        ],
        {"custom_id": "a", "result": {"type": "succeeded", "message": MESSAGE}},
    ),
    (
        "google",
        "google.generate",
        "generateContent",
        GEMINI,
        [{**GEMINI, "usageMetadata": None}, GEMINI],
        {"key": "a", "response": GEMINI},
    ),
    (
        "google",
        "google.interactions",
        "Interactions",
        INTERACTION,
        [{"event_type": "interaction.complete", "interaction": INTERACTION}],
        None,
    ),
    ("aws", "bedrock.converse", "Converse", CONVERSE, [{"metadata": {"usage": CONVERSE["usage"]}}], None),
    ("aws", "bedrock.invoke", "InvokeModel", LLAMA, [LLAMA], None),
    (
        "cohere",
        "cohere.chat",
        "Chat, Embed, Rerank, Classify",
        COHERE,
        [{"type": "message-end", "id": "c1", "delta": {"usage": COHERE["usage"]}}],
        None,
    ),
    ("mistral", "mistral.chat", "Chat, Transcription", chat(), chunks(chat()), openai_batch(chat())),
    ("mistral", "mistral.ocr", "OCR", OCR, None, openai_batch(OCR)),
    ("x-ai", "xai.chat", "Chat Completions", XAI, chunks(XAI), None),
    ("deepseek", "deepseek.chat", "Chat Completions", DEEPSEEK, chunks(DEEPSEEK), None),
    ("groq", "groq.chat", "Chat Completions", GROQ, chunks(GROQ), openai_batch(GROQ)),
    ("perplexity", "perplexity.chat", "Sonar", PERPLEXITY, chunks(PERPLEXITY), None),
    ("openrouter", "openrouter.chat", "Chat Completions", OPENROUTER, chunks(OPENROUTER), None),
    (
        "ollama",
        "ollama",
        "generate, chat, embed",
        OLLAMA,
        [{"model": "llama3.2", "done": False}, OLLAMA],
        None,
    ),
    ("", "vercel", "Vercel AI SDK", VERCEL, None, None),
    ("", "opentelemetry", "gen_ai attributes", SPAN, None, None),
    ("", "generic", "this project's own words", GENERIC, None, None),
)


def read(row, form):
    provider, api, _, plain, events, batch = row
    payload = {"plain": plain, "stream": events, "SDK object": objects(plain), "batch": batch}[form]
    if payload is None or (form == "SDK object" and api in ("opentelemetry", "vercel", "generic")):
        return None
    # A batch's line and events say themselves what they are.
    named = {} if form == "batch" else {"api": api}
    return usage_from_response(payload, provider=provider or "p", **named)


def counted(record):
    found = [name for name in COUNTS if getattr(record, name)]
    if record.modality is not None:
        names = record.modality.__struct_fields__
        found += [name for name in names if type(n := getattr(record.modality, name)) is int and n]
    found += [f"meters.{name}" for name in sorted(record.meters)]
    return found + (["reported_cost"] if record.reported_cost is not None else [])


def page():
    lines = [
        "# What we read",
        "",
        "`usage_from_response` reads these answers whole, as a list or iterator of streamed events, as",
        "objects of the provider's SDK, and as lines of a batch's results. The last column is what the",
        "sample in the tests was found to count; a count that an answer does not state is left open, it is",
        "never 0. Servers that speak OpenAI's Chat Completions, Responses or Embeddings, or Anthropic's",
        "Messages, are read as those: pass `provider=` for their prices. Several calls in one answer or list",
        "of events are read by `usages_from_response`. A test fails when this page is not what is read.",
        "",
        "| provider | API (`api=`) | plain | stream | SDK object | batch | counted |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        marks = " | ".join("yes" if read(row, form) is not None else "" for form in FORMS)
        counts = ", ".join(f"`{name}`" for name in counted(read(row, "plain")))
        lines.append(f"| {row[0] or 'any'} | {row[2]} (`{row[1]}`) | {marks} | {counts} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_counts_the_same(row, form):
    record, whole = read(row, form), read(row, "plain")
    assert counted(whole)
    if record is not None:
        names = (*COUNTS, "modality", "reported_cost")
        assert {n: getattr(record, n) for n in names} == {n: getattr(whole, n) for n in names}
        # What tools were called stands in the answer, not in the last event of some streams.
        assert record.meters == whole.meters
        assert (record.processing == "batch") == (form == "batch")


def test_every_api_has_a_row():
    assert {row[1] for row in ROWS} == set(APIS)


def test_the_page_says_what_is_read():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.unit.normalizers.test_what_we_read"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
