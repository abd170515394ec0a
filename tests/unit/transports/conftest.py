"""Fixtures of the transports' tests."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["sync", "async"])
def colour(request):
    """Which of both clients a test uses."""
    return request.param
