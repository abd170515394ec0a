"""Where a command sends its calls."""

from __future__ import annotations

import argparse
import os

from llm_cost_ops.client import CostOpsClient
from llm_cost_ops.config import ClientConfig, RetryConfig

__all__ = ["open_client"]


def open_client(options: argparse.Namespace) -> CostOpsClient:
    """A client for --db or --base-url, or for what the environment says."""
    base_url = getattr(options, "base_url", None)
    if options.db:
        base_url = "sqlite:///" + os.fspath(options.db)
    config = ClientConfig.from_env(**({"base_url": base_url} if base_url else {}))
    # A command has nobody waiting behind it: it may be more patient than a service.
    return CostOpsClient(config=config.replace(timeout=120.0, retry=RetryConfig(max_retries=6)))
