"""The Python in README.md and docs/ compiles; what is marked runnable runs, and prints what it says.

A line `<!-- runnable -->` before a block makes it run, in an empty folder, on the embedded engine.
A line `<!-- prints -->` before the next block compares it with what the runnable one printed. Other lines say
what runs a block with: an SDK, a server, pytest; `<!-- not run: … -->` says why nothing does.
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
from types import CodeType
from typing import Any, NamedTuple

import pytest

from llm_cost_ops import CostOpsClient, cli
from tests.served import served
from tests.waiting import MAX_WAIT

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n+)?^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


# Pages whose examples are run by a test of their own: test_sdk_pages.py and test_where_it_runs.py.
RUN_ELSEWHERE = {"where-it-runs.md", *(path.name for path in (ROOT / "docs").glob("sdk-*.md"))}
# What another test than those here runs.
MARKS_ELSEWHERE = re.compile(r"proxied|stub: \S+|streams: .*|runs with litellm|not run: .{10,}")


class Example(NamedTuple):
    where: str
    code: str
    mark: str
    output: str | None

    @property
    def runnable(self) -> bool:
        return self.mark == "runnable"


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
                found.append(Example(where, match["text"], match["mark"] or "", None))
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
    _run(code)
    if example.output is not None:
        assert capsys.readouterr().out.rstrip() == example.output.rstrip()


def _run(code: CodeType) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(code, names)
    finally:
        # Also of an example that fails: what it left open would fail another test.
        for value in names.values():
            if isinstance(value, CostOpsClient):
                value.close()


def _marked(kind: str) -> list[Any]:
    return [pytest.param(each, id=each.where) for each in EXAMPLES if each.mark.startswith(kind)]


@pytest.mark.parametrize(
    "example", [each for each in _marked("runs with") if "litellm" not in each.values[0].mark]
)
def test_example_with_a_library(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(example.mark.removeprefix("runs with "), reason="needs the extra [sdks]")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    _run(compile(example.code, example.where, "exec"))


def test_examples_with_a_server(tmp_path: Path) -> None:
    examples = [each.values[0] for each in _marked("served")]
    assert len(examples) >= 2
    with served("--db", "costs.db", "--http", "127.0.0.1:0") as server:
        [http] = server.urls
        for example in examples:
            code = re.sub(r'base_url="https?://[^"]*"', f'base_url="{http}"', example.code)
            assert http in code
            _run(compile(code, example.where, "exec"))


def test_examples_of_tests(tmp_path: Path) -> None:
    examples = [each.values[0] for each in _marked("pytest")]
    code = "".join(each.code for each in examples).replace("async def test_", "async def test_async_")
    (tmp_path / "test_examples.py").write_text(code, encoding="utf-8")
    options = ["-q", "-c", "/dev/null", "-o", "asyncio_mode=auto", "--rootdir", "."]
    options += ["-p", "no:cacheprovider", "-p", "no:schemathesis"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_examples.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * MAX_WAIT,
    )
    assert re.search(rf"\b{len(examples)} passed", done.stdout), done.stdout


def test_every_example_runs_or_says_why_not() -> None:
    here = re.compile(r"runnable|served|pytest|runs with \w+")
    left = [
        each.where
        for each in EXAMPLES
        if each.where.rpartition(":")[0].rpartition("/")[2] not in RUN_ELSEWHERE
        and not here.fullmatch(each.mark)
        and not MARKS_ELSEWHERE.fullmatch(each.mark)
    ]
    assert left == []


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
def test_what_is_said_of_litellm_is_so() -> None:
    examples = _with_litellm()
    # Its own prices, of the version that is installed, and none from the network.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [sys.executable, "-W", "ignore", "-c", "print('----')\n".join(code for code, _ in examples)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True, timeout=2 * MAX_WAIT
    )
    said = [output.splitlines()[-1] for output in done.stdout.split("----\n")]
    assert said == [printed.strip() for _, printed in examples]


def test_every_page_is_found_from_the_first() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = " ".join(re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)).split()
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert sorted(name for name in listed if not name.startswith(":") and name in pages) == sorted(pages)


@pytest.mark.parametrize("line", _commands())
def test_the_command_line_takes_what_the_documentation_shows(line: str) -> None:
    assert cli._parser().parse_args(shlex.split(line)).command == line.split()[0]
