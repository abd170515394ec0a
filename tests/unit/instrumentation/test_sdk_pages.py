"""The examples on the pages of the SDKs run as they stand, against the stub in the provider's place."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.client import observer
from llm_cost_ops.rules import providers
from llm_cost_ops.types import UsageQuality
from tests.sdk_stub import BATCH_LINES, INPUT, OUTPUT, Stub

DOCS = Path(__file__).parents[3] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STREAMS = re.compile(r"^<!-- streams: (\S+)(| unknown) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAX_LINES = 13

# Of each page: the module that it wants, its provider, and how many calls each example makes.
PAGES: dict[str, tuple[str, str, list[int]]] = {
    "sdk-openai.md": ("openai", "openai", [2, 1, BATCH_LINES, 1]),
    "sdk-anthropic.md": ("anthropic", "anthropic", [1, BATCH_LINES]),
    "sdk-google.md": ("google.genai", "google", [2]),
    "sdk-mistral.md": ("mistralai.client", "mistral", [2]),
    "sdk-cohere.md": ("cohere", "cohere", [2]),
    "sdk-bedrock.md": ("boto3", "aws", [2]),
}

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)


def examples() -> list[Any]:
    found = []
    for name in PAGES:
        blocks = BLOCK.findall((DOCS / name).read_text(encoding="utf-8"))
        found += [
            pytest.param(name, number, code, id=f"{name}-{number}") for number, code in enumerate(blocks)
        ]
    return found


PROVIDERS = {module: provider for module, provider, _ in PAGES.values()}


def streams() -> list[Any]:
    found = STREAMS.findall((DOCS / "sdk-streams.md").read_text(encoding="utf-8"))
    return [pytest.param(*each, id=f"{at}-{each[0]}") for at, each in enumerate(found)]


@pytest.fixture
def in_place(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """The stub where the SDKs look for their providers, by what the environment says."""
    settings = {
        "LLM_COST_OPS_BASE_URL": "sqlite://",
        "LLM_COST_OPS_ORGANIZATION_ID": "acme",
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": f"{stub.url}/v1",
        "ANTHROPIC_API_KEY": "k",
        "ANTHROPIC_BASE_URL": stub.url,
        "GEMINI_API_KEY": "k",
        "GOOGLE_GEMINI_BASE_URL": stub.url,
        "CO_API_KEY": "k",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": stub.url,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.setattr(observer, "_default", None)
    yield stub
    if observer._default is not None:
        observer._default.close()
    gc.collect()


def ran(module: str, code: str, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> CostOpsClient:
    """Run an example; the client that has recorded."""
    provider = PROVIDERS[module]
    pytest.importorskip(module, reason="needs the extra [sdks]")
    assert len(code.splitlines()) <= MAX_LINES
    monkeypatch.setitem(providers._HOSTS, "127.0.0.1", provider)
    if provider == "mistral":
        from mistralai.client import sdkconfiguration

        monkeypatch.setitem(sdkconfiguration.SERVERS, "global", f"{stub.url}/mistral")
    if provider == "cohere":
        import cohere

        # It reads CO_API_URL once, when it is imported.
        monkeypatch.setattr(cohere, "ClientV2", partial(cohere.ClientV2, base_url=stub.url))
    exec(compile(code, module, "exec"), {"__name__": "__main__"})
    client = observer._default
    assert client is not None
    return client


@pytest.mark.parametrize(("page", "number", "code"), examples())
def test_the_example_records_its_calls(
    page: str, number: int, code: str, in_place: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, provider, calls = PAGES[page]
    client = ran(module, code, in_place, monkeypatch)
    report = client.flush(10)
    assert (report.delivered, report.rejected) == (calls[number], [])
    for record in client.usage.list(organization_id="acme"):
        assert record.quality != UsageQuality.UNKNOWN
        assert record.input_tokens == INPUT or record.meters == {"search_units": 1}
        assert record.provider in (provider, "vllm")


@pytest.mark.parametrize(("module", "quality", "code"), streams())
def test_a_stream_is_recorded_once(
    module: str, quality: str, code: str, in_place: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ran(module, code, in_place, monkeypatch)
    assert client.flush(10).rejected == []
    [record] = client.usage.list(organization_id="acme")
    assert record.provider == PROVIDERS[module]
    assert (record.quality == UsageQuality.UNKNOWN) == bool(quality)
    assert (record.input_tokens, record.output_tokens) == ((None, None) if quality else (INPUT, OUTPUT))


def test_the_page_of_streams_has_every_sdk() -> None:
    assert {module for module, _, _ in (each.values for each in streams())} == set(PROVIDERS)


def test_each_page_has_its_examples_and_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page, (_, _, calls) in PAGES.items():
        assert len(BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))) == len(calls)
        assert f"\n{page.removesuffix('.md')}\n" in index
