"""Every way to call each SDK's client leaves the records that it should: docs/call-styles.md says which.

`python -m tests.unit.instrumentation.test_matrix` writes the page anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.instrumentation.hooks import http_clients_of
from tests.sdk_stub import Stub
from tests.unit.instrumentation import ways_anthropic, ways_google, ways_openai, ways_others
from tests.unit.instrumentation.matrix import Column, Way, check, is_async, records_of, settle
from tests.waiting import until_async

# Set by tools/sdk_versions.py: calls that the version which is installed does not have are skipped.
SDK_OF_ANY_VERSION = "SDK_OF_ANY_VERSION" in os.environ
PAGE = Path(__file__).parents[3] / "docs/call-styles.md"


def _openai(stub: Stub, asynchronous: bool) -> Any:
    import openai

    made = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    return made(api_key="k", base_url=f"{stub.url}/v1")


def _azure(stub: Stub, asynchronous: bool) -> Any:
    import openai

    made = openai.AsyncAzureOpenAI if asynchronous else openai.AzureOpenAI
    return made(api_key="k", azure_endpoint=stub.url, api_version="2024-10-21")


def _openai_bedrock(stub: Stub, asynchronous: bool) -> Any:
    import openai

    made = openai.AsyncBedrockOpenAI if asynchronous else openai.BedrockOpenAI
    return made(api_key="k", base_url=f"{stub.url}/openai/v1", aws_region="us-east-1")


def _anthropic(stub: Stub, asynchronous: bool) -> Any:
    import anthropic

    made = anthropic.AsyncAnthropic if asynchronous else anthropic.Anthropic
    return made(api_key="k", base_url=stub.url)


def _vertex(stub: Stub, asynchronous: bool) -> Any:
    import anthropic

    made = anthropic.AsyncAnthropicVertex if asynchronous else anthropic.AnthropicVertex
    return made(region="us-east5", project_id="p", access_token="t", base_url=f"{stub.url}/v1")


def _bedrock(stub: Stub, asynchronous: bool) -> Any:
    import anthropic

    made = anthropic.AsyncAnthropicBedrock if asynchronous else anthropic.AnthropicBedrock
    return made(aws_access_key="a", aws_secret_key="b", aws_region="us-east-1", base_url=stub.url)


def _foundry(stub: Stub, asynchronous: bool) -> Any:
    import anthropic

    made = anthropic.AsyncAnthropicFoundry if asynchronous else anthropic.AnthropicFoundry
    return made(api_key="k", base_url=f"{stub.url}/anthropic")


def _gemini(stub: Stub, asynchronous: bool) -> Any:
    from google import genai

    sdk = genai.Client(api_key="k", vertexai=False, http_options={"base_url": stub.url})
    return sdk.aio if asynchronous else sdk


def _gemini_vertex(stub: Stub, asynchronous: bool) -> Any:
    from google import genai
    from google.oauth2.credentials import Credentials

    sdk = genai.Client(
        vertexai=True,
        project="p",
        location="us-central1",
        credentials=Credentials(token="t"),
        http_options={"base_url": stub.url},
    )
    return sdk.aio if asynchronous else sdk


def _mistral(stub: Stub, asynchronous: bool) -> Any:
    try:
        from mistralai.client import Mistral
    except ImportError:
        from mistralai import Mistral  # before 2.0

    sdk = Mistral(api_key="k", server_url=f"{stub.url}/mistral")
    return ways_others.AsyncMistral(sdk) if asynchronous else sdk


def _cohere(stub: Stub, asynchronous: bool) -> Any:
    import cohere

    made = cohere.AsyncClientV2 if asynchronous else cohere.ClientV2
    return made("k", base_url=stub.url)


def _boto3(stub: Stub, asynchronous: bool) -> Any:
    import boto3

    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    return boto3.client("bedrock-runtime", endpoint_url=stub.url, region_name="us-east-1", **keys)


_NO_BATCH = {"batch: results", "batch: results read twice", "batch: results, compressed"}
_NO_COUNTING = frozenset(_NO_BATCH | {"counting tokens"})
# Variants of a client that is tried in full.
_SOME = {"create", "stream", "stream helper", "responses.create", "stream closed early", "retried by the SDK"}


def _without_others(ways: list[Way]) -> frozenset[str]:
    return frozenset(way.style for way in ways if way.style not in _SOME)


COLUMNS = (
    Column("OpenAI", "openai", "openai", _openai, ways_openai.WAYS),
    Column("AzureOpenAI", "openai", "azure", _azure, ways_openai.WAYS),
    Column(
        "BedrockOpenAI",
        "openai",
        "aws",
        _openai_bedrock,
        ways_openai.WAYS,
        _without_others(ways_openai.WAYS),
    ),
    Column("Anthropic", "anthropic", "anthropic", _anthropic, ways_anthropic.WAYS),
    Column("AnthropicVertex", "anthropic", "google", _vertex, ways_anthropic.WAYS, frozenset(_NO_BATCH)),
    Column("AnthropicBedrock", "anthropic", "aws", _bedrock, ways_anthropic.WAYS, _NO_COUNTING),
    Column(
        "AnthropicFoundry",
        "anthropic",
        "azure",
        _foundry,
        ways_anthropic.WAYS,
        _without_others(ways_anthropic.WAYS),
    ),
    Column("genai.Client", "google.genai", "google", _gemini, ways_google.WAYS),
    Column(
        "genai.Client, Vertex",
        "google.genai",
        "google",
        _gemini_vertex,
        ways_google.WAYS,
        frozenset(_NO_BATCH),
    ),
    Column("Mistral", "mistralai", "mistral", _mistral, ways_others.MISTRAL),
    Column("cohere.ClientV2", "cohere", "cohere", _cohere, ways_others.COHERE),
    Column("boto3", "boto3", "aws", _boto3, ways_others.BEDROCK, modes=("sync",)),
)

# Some SDKs leave their connections to the collector, and deprecate what they call.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
)


def cases() -> Iterator[Any]:
    for column in COLUMNS:
        for way, mode in column.cases():
            yield pytest.param(column, way, mode, id=f"{column.name}-{way.style}-{mode}")


@pytest.mark.parametrize(("column", "way", "mode"), list(cases()))
async def test_each_way_is_recorded(
    column: Column, way: Way, mode: str, stub: Stub, client: CostOpsClient
) -> None:
    pytest.importorskip(column.package, reason="needs the extra [sdks]")
    if SDK_OF_ANY_VERSION and (trouble := await _alone(column, way, mode, stub)):
        pytest.skip(f"this version of the SDK can't do it: {trouble}")
    sdk = column.open(stub, mode == "async")
    hooked = sdk.sdk if isinstance(sdk, ways_others.AsyncMistral) else sdk
    assert client.instrument(hooked, provider=column.provider, stream_usage=True) is hooked
    await way.call(sdk)
    await _close(hooked)
    # What a caller left to the collector ends in the loop, some turns later.
    await until_async(lambda: len(records_of(client)) >= way.records)
    records = records_of(client)
    assert len(records) == way.records, records
    for record in records:
        check(record, way.expected)
        assert record.provider == column.provider
        if column.provider == "aws" and column.package != "openai":
            assert (record.region, record.model_id.partition(".")[0]) in (("us", "us"), ("", "anthropic"))


async def _alone(column: Column, way: Way, mode: str, stub: Stub) -> str:
    """What goes wrong when the call is made without us: the version that is installed may not have it."""
    try:
        sdk = column.open(stub, mode == "async")
        await way.call(sdk)
        await _close(sdk.sdk if isinstance(sdk, ways_others.AsyncMistral) else sdk)
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  # any of any SDK
        return repr(error)[:200] or "?"
    return ""


async def _close(sdk: Any) -> None:
    """Close the HTTP clients of an SDK: not every one of them can be closed itself."""
    for http_client in http_clients_of(sdk):
        await settle(http_client.aclose() if hasattr(http_client, "aclose") else http_client.close())
    if type(sdk).__module__.startswith("google") and hasattr(sdk, "aclose" if is_async(sdk) else "close"):
        await settle(sdk.aclose() if is_async(sdk) else sdk.close())


_CELLS = {"usage": "usage", "input": "usage", "units": "usage", "unknown": "unknown"}


def _cell(column: Column, style: str) -> str:
    found = [(way, mode) for way, mode in column.cases() if way.style == style]
    if not found:
        return ""
    way = found[0][0]
    modes = [mode for _, mode in found]
    text = _CELLS[way.expected] if way.records else "none"
    times = f" × {way.records}" if way.records > 1 else ""
    only = "" if modes == list(column.modes) else f" ({modes[0]})"
    return f"{text}{times}{only}"


def page() -> str:
    """docs/call-styles.md."""
    styles: list[str] = []
    for column in COLUMNS:
        styles += [way.style for way in column.ways if way.style not in styles]
    lines = [
        "# Ways to call, and what is recorded",
        "",
        "Each cell was tried with the SDK's own client against a server on loopback, sync and async (boto3",
        "has no async client): exactly one record, with the usage that the server sent (`usage`), or of",
        "unknown usage (`unknown`) where the call was broken off or the answer states none. `× 20` are 20",
        "records; `none` is no record, as it should be. Empty cells were not tried: the SDK has no such",
        "call, or another row is like it. A test fails when this page is not what the tests show.",
        "[Instrumenting SDKs](instrument.md) says what it means.",
        "",
        "| way to call | " + " | ".join(f"`{column.name}`" for column in COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for style in styles:
        cells = " | ".join(_cell(column, style) for column in COLUMNS)
        lines.append(f"| {style} | {cells} |")
    return "\n".join(lines) + "\n"


def test_the_page_says_what_the_tests_show() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.unit.instrumentation.test_matrix"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
