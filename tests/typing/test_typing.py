"""mypy and pyright, both strict, accept accepted.py and refuse in refused.py the marked lines, no others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FILES = [str(HERE / "accepted.py"), str(HERE / "refused.py")]


def _marked() -> dict[int, set[str]]:
    """The codes that mypy is to give, by line."""
    lines = (HERE / "refused.py").read_text().splitlines()
    marks = {number: re.search(r"# refused: (\S+)$", line) for number, line in enumerate(lines, 1)}
    return {number: set(mark[1].split(",")) for number, mark in marks.items() if mark}


def _errors() -> dict[str, dict[int, set[str]]]:
    """The codes of mypy's findings by file and line."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    # In a process of its own: mypy raises the limit of recursion, which tests after this one reach.
    command = [sys.executable, "-m", "mypy", *options, "--no-error-summary", "--hide-error-context", *FILES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    output = done.stdout
    assert done.stderr == ""
    found = re.findall(r"(\w+\.py):(\d+): error: .*\[([a-z-]+)\]$", output, re.MULTILINE)
    assert output.count(": error:") == len(found), output
    lines: dict[str, dict[int, set[str]]] = {}
    for name, line, code in found:
        lines.setdefault(name, {}).setdefault(int(line), set()).add(code)
    return lines


@pytest.mark.slow
def test_mypy_accepts_good_code_and_refuses_wrong_code_where_it_is_wrong() -> None:
    assert len(_marked()) >= 20
    assert _errors() == {"refused.py": _marked()}


@pytest.mark.slow
def test_pyright_sees_the_same() -> None:
    pytest.importorskip("basedpyright", reason="pyright is in the dev extra")
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([*command, *FILES], cwd=ROOT, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 2
    found = {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
        for each in report["generalDiagnostics"]
        if each["severity"] == "error"
    }
    assert found == {("refused.py", line) for line in _marked()}
