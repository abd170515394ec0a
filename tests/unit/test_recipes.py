"""CONTRIBUTING.md and the pages that list things: what they name is there, and what is there they name."""

from __future__ import annotations

import re
from pathlib import Path

from llm_cost_ops import exceptions
from llm_cost_ops.cli import _parser

ROOT = Path(__file__).parents[2]
PLACES = ("llm_cost_ops", "proto", "tools", "tests", "docs", "benchmarks")
# Made when they are needed, hidden, or a provider's.
ELSEWHERE = {".venv", ".ci/run", "openapi.json", "stream_options"}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_every_file_and_name_of_a_recipe_is_there() -> None:
    paths = [f"/{path.relative_to(ROOT)}" for path in ROOT.glob("*")]
    paths += [f"/{path.relative_to(ROOT)}" for place in PLACES for path in (ROOT / place).rglob("*")]
    words: set[str] = set()
    for path in (path for place in PLACES for path in (ROOT / place).rglob("*.py")):
        words.update(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    missing = []
    for name in set(re.findall(r"`([\w./]+)(?:\(.*?\))?`", text_of("CONTRIBUTING.md"))) - ELSEWHERE:
        is_file = any(path.endswith(f"/{name.rstrip('/')}") for path in paths)
        if not is_file and not set(name.split(".")) <= words:
            missing.append(name)
    assert missing == []


def test_the_page_of_errors_has_all_of_them() -> None:
    tree = text_of("docs/errors.md").split("```")[1]
    names = [name for name in exceptions.__all__ if name.endswith("Error")]
    assert [name for name in names if not re.search(rf"^\W*{name}\b", tree, re.MULTILINE)] == []


def test_the_page_of_the_command_line_has_every_command() -> None:
    rows = [line for line in text_of("docs/command-line.md").splitlines() if line.startswith("| `")]
    commands = next(action.choices for action in _parser()._actions if hasattr(action.choices, "keys"))
    assert [name for name in commands if not any(re.match(rf"\| `{name}\b", row) for row in rows)] == []
