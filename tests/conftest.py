"""Settings of the whole suite."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

__all__ = ["no_settings_from_the_environment"]

# A shared machine has slow moments; a failure prints what reproduces it.
settings.register_profile("llm-cost-ops", deadline=None, print_blob=True)
settings.load_profile("llm-cost-ops")


@pytest.fixture(autouse=True)
def no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the LLM_COST_OPS_* variables of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("LLM_COST_OPS_")]:
        monkeypatch.delenv(name)
