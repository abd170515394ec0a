from __future__ import annotations

from collections.abc import Iterator

import pytest

from llm_cost_ops import ClientConfig, CostOpsClient
from tests.sdk_stub import Stub, running_stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as server:
        yield server


@pytest.fixture
def client() -> Iterator[CostOpsClient]:
    config = ClientConfig(base_url="sqlite://", organization_id="acme")
    with CostOpsClient(config=config) as made:
        yield made
