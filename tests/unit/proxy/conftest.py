from __future__ import annotations

from collections.abc import Iterator

import pytest

from llm_cost_ops import ClientConfig, CostOpsClient
from tests.proxies import Provider, running_provider, running_proxy


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_provider() as server:
        yield server


@pytest.fixture
def client() -> Iterator[CostOpsClient]:
    with CostOpsClient(config=ClientConfig(base_url="sqlite://", organization_id="acme")) as made:
        yield made


@pytest.fixture
def proxy(provider: Provider, client: CostOpsClient) -> Iterator[str]:
    with running_proxy({"openai": provider.url, "anthropic": provider.url + "/base"}, client) as url:
        yield url
