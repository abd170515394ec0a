"""The Python in README.md and docs/ compiles; what is marked runnable runs, and prints what it says.

A line `<!-- runnable -->` before a block makes it run, in an empty folder, on the embedded engine.
A line `<!-- prints -->` before the next block compares it with what the runnable one printed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from llm_cost_ops import cli

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>runnable|prints) -->\n+)?^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Example(NamedTuple):
    where: str
    code: str
    runnable: bool
    output: str | None


def _pages() -> Iterator[tuple[Path, str]]:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        yield path, path.read_text(encoding="utf-8")


def _examples() -> list[Example]:
    found: list[Example] = []
    for path, text in _pages():
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("text"))
            where = f"{path.relative_to(ROOT).as_posix()}:{line}"
            if match["mark"] == "prints":
                assert found, f"{where} prints what?"
                assert found[-1].runnable, f"{where}: the example before it does not run"
                found[-1] = found[-1]._replace(output=match["text"])
            elif match["kind"] == "python":
                found.append(Example(where, match["text"], match["mark"] == "runnable", None))
    return found


def _commands() -> list[str]:
    shown = re.compile(r"^\$ llm-cost-ops (.*)$", re.MULTILINE)
    return sorted({line for _, text in _pages() for line in shown.findall(text)})


EXAMPLES = _examples()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_there_are_examples_that_run() -> None:
    assert sum(example.runnable for example in EXAMPLES) >= 5


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.where)
def test_example(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    code = compile("\n" * int(example.where.rpartition(":")[2]) + example.code, example.where, "exec")
    assert example.code.isascii(), "what is copied may end in a header, or be compared"
    if not example.runnable:
        return
    exec(code, {"__name__": "__main__"})
    if example.output is not None:
        assert capsys.readouterr().out.rstrip() == example.output.rstrip()


def test_what_the_documentation_names_is_there() -> None:
    named = re.compile(r"`(?:python )?((?:tests|benchmarks|examples)/[\w/.-]*)`")
    missing = [(path.name, name) for path, text in _pages() for name in named.findall(text)]
    assert [item for item in missing if not (ROOT / item[1]).exists()] == []


def _with_litellm() -> list[tuple[str, str]]:
    """The examples that litellm runs, each with what it prints."""
    shown = re.compile(
        r"^<!-- runs with litellm -->\n```python\n(.*?)^```\n+```text\n(.*?)^```$", re.MULTILINE | re.DOTALL
    )
    return [found for _, text in _pages() for found in shown.findall(text)]


@pytest.mark.skipif(find_spec("litellm") is None, reason="litellm, of the extra [sdks], is not installed")
@pytest.mark.parametrize("number", range(len(_with_litellm())))
def test_what_is_said_of_litellm_is_so(number: int) -> None:
    code, printed = _with_litellm()[number]
    # Its own prices, of the version that is installed, and none from the network.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == printed.strip()


def test_every_page_is_found_from_the_first() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = " ".join(re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)).split()
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert sorted(name for name in listed if not name.startswith(":") and name in pages) == sorted(pages)


@pytest.mark.parametrize("line", _commands())
def test_the_command_line_takes_what_the_documentation_shows(line: str) -> None:
    assert cli._parser().parse_args(shlex.split(line)).command == line.split()[0]
