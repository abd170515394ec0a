"""How a command says what failed."""

from __future__ import annotations

import argparse
import os

from llm_cost_ops.config import EMBEDDED
from llm_cost_ops.exceptions import CostOpsError, ServerError, ValidationError

__all__ = ["in_words"]


def in_words(error: CostOpsError, options: argparse.Namespace) -> str:
    """An error as a line of text: rules that are broken are those of the options that were meant.

    Its status and the id of its request help whoever looks into a server's log: where no server was asked,
    they say nothing. The code of trouble with storage stays, since the documentation has a list of them.
    """
    text = str(error)
    if error.attempts == 0 or not _asks_server(options):
        text = error.message + (f" [{error.code}]" if isinstance(error, ServerError) else "")
    if isinstance(error, ValidationError):
        for field, rule in error.violations:
            text = text.replace(f"{field} {rule}", f"{options.parser.option_of(field)} {rule}")
    return text


def _asks_server(options: argparse.Namespace) -> bool:
    """Whether a command that takes --db or --base-url sends its calls to a server."""
    given = vars(options)
    if "base_url" not in given or given.get("db"):
        return False
    base_url = given["base_url"] or os.environ.get("LLM_COST_OPS_BASE_URL", "")
    return "://" in base_url and base_url.partition(":")[0] not in EMBEDDED
