"""The hooks in mistralai and cohere."""

from __future__ import annotations

import gc
from typing import Any

import pytest

# Neither SDK closes the HTTP clients that it makes by itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def check(*http_clients: Any) -> None:
    for http_client in http_clients:
        assert callable(http_client.send)
        assert callable(http_client.build_request)
    gc.collect()


def test_the_hook_is_still_there_in_mistralai() -> None:
    mistral = pytest.importorskip("mistralai.client", reason="needs the extra [sdks]")
    configuration = mistral.Mistral(api_key="k").sdk_configuration
    check(configuration.client, configuration.async_client)


def test_the_hook_is_still_there_in_cohere() -> None:
    cohere = pytest.importorskip("cohere", reason="needs the extra [sdks]")
    clients = (cohere.ClientV2("k"), cohere.AsyncClientV2("k"))
    check(*(each._client_wrapper.httpx_client.httpx_client for each in clients))
