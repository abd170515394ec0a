"""mypy, strict, accepts accepted.py and refuses the marked lines of refused.py, and only those."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def _errors(file: Path) -> dict[int, str]:
    """The codes of mypy's findings in `file` by line."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    output, trouble, _ = api.run([*options, "--no-error-summary", "--hide-error-context", str(file)])
    assert trouble == ""
    found = re.findall(rf"{re.escape(file.name)}:(\d+): error: .*\[([a-z-]+)\]$", output, re.MULTILINE)
    assert output.count(": error:") == len(found), output
    return {int(line): code for line, code in found}


@pytest.mark.slow
def test_good_code_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert _errors(HERE / "accepted.py") == {}


@pytest.mark.slow
def test_wrong_code_is_refused_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = (HERE / "refused.py").read_text().splitlines()
    marks = {number: re.search(r"# refused: (\S+)$", line) for number, line in enumerate(lines, 1)}
    expected = {number: mark[1] for number, mark in marks.items() if mark}
    assert len(expected) >= 10
    assert _errors(HERE / "refused.py") == expected
