"""The OpenAPI document against the running server: a validator, and schemathesis on every route."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

import llm_cost_ops
from tests.conformance.keyed import KeyedServer, keyed_server

DOCUMENT: dict[str, Any] = json.loads(
    (Path(llm_cost_ops.__file__).parent / "_gen" / "openapi.json").read_text("utf-8")
)
# Rules between fields are in their descriptions: no schema can say that a model needs its provider's tiers.
NOT_SAID_BY_A_SCHEMA = [positive_data_acceptance]
# A bad record of a batch or a stream harms only itself: its own answer tells, under a status of 200.
ITEMIZED = ("/api/v1/usage/batch", "/api/v1/usage/stream")
ANSWERED_ONE_BY_ONE = [negative_data_rejection]

ROUTES = [
    pytest.param(verb, path, mode, id=f"{operation['operationId']}-{mode.value}")
    for path, verbs in DOCUMENT["paths"].items()
    for verb, operation in verbs.items()
    for mode in GenerationMode
    # Nothing is wrong for a route that takes nothing of its own.
    if mode is GenerationMode.POSITIVE or path not in ("/health", "/ready")
]

load_all_checks()


@schemathesis.serializer("application/x-ndjson")
def as_lines(_context: Any, value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    with keyed_server(tmp_path_factory.mktemp("openapi")) as server:
        yield server


@pytest.fixture(scope="module")
def document(server: KeyedServer) -> Any:
    return schemathesis.openapi.from_url(server.urls["http"] + "/openapi.json")


def headers_of(server: KeyedServer) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.keys['everyone']}"}


def is_text(value: object) -> bool:
    """Whether a part of a query is texts alone."""
    if isinstance(value, dict):
        return all(map(is_text, value.values()))
    return all(map(is_text, value)) if isinstance(value, list) else isinstance(value, str)


def test_it_is_openapi() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def test_the_server_shows_what_was_generated(server: KeyedServer) -> None:
    answer = httpx.get(server.urls["http"] + "/openapi.json")
    assert answer.json() == DOCUMENT
    assert answer.headers["content-type"] == "application/json"
    page = httpx.get(server.urls["http"] + "/docs")
    assert page.status_code == 200
    assert "openapi.json" in page.text
    assert "unsafe-eval" not in page.headers["content-security-policy"]
    assert httpx.post(server.urls["http"] + "/docs").status_code == 405


@pytest.mark.parametrize(("verb", "path", "mode"), ROUTES)
def test_every_route_does_what_the_document_says(
    verb: str, path: str, mode: GenerationMode, document: Any, server: KeyedServer
) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(document[path][verb].as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        query = case.query or {}
        # With unknown=keep a field that nobody knows is kept, and not refused as the schema of the body says.
        # Other values than texts are sent as texts, and "false" is a region as good as any.
        may_pass = path in ITEMIZED or query.get("unknown") == "keep" or not is_text(query)
        left_out = NOT_SAID_BY_A_SCHEMA + ANSWERED_ONE_BY_ONE * may_pass
        case.call_and_validate(headers=headers_of(server), excluded_checks=left_out)

    run()


def bodies() -> list[Any]:
    return [
        pytest.param(verb, path, content["example"], id=operation["operationId"])
        for path, verbs in DOCUMENT["paths"].items()
        for verb, operation in verbs.items()
        for content in operation.get("requestBody", {}).get("content", {}).values()
        if "example" in content
    ]


@pytest.mark.parametrize(("verb", "path", "example"), bodies())
def test_every_example_works(verb: str, path: str, example: Any, server: KeyedServer) -> None:
    url = server.urls["http"] + path
    answer = httpx.request(verb, url, json=example, headers=headers_of(server))
    assert answer.is_success, answer.text


def test_there_are_examples() -> None:
    assert {case.id for case in bodies()} >= {"usage_submit", "usage_submit_batch", "costs_estimate"}
