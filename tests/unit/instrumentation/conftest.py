from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sdk_stub import Stub, running_stub
from tests.unit.telemetry.conftest import client

__all__ = ["client", "stub"]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as server:
        yield server
