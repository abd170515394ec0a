"""Every example runs as it is, in an empty folder, and prints what it is there to show."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import MAX_WAIT

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

PRINTED = {
    "background_recording.py": [
        "400 delivered, 0 in the spool, 0 dropped",
        *(f"user-{number}  100 calls  0.75 USD" for number in range(4)),
    ],
    "async_usage.py": ["submitted: 100", "duplicate: True", "input tokens: 104950", "total: 1.02475 USD"],
    "basic_usage.py": [
        "one call: 0.0075 USD",
        "batch: 3 created, 1 invalid",
        "acme-llm: 0.06 USD for 3 calls",
        "openai: 0.0075 USD for 1 calls",
        "total: 0.0675",
        "listed: 4 records in 2 pages",
    ],
    "choose_transport.py": [
        "in memory: healthy, 0.3 USD",
        "on a file: healthy, 0.3 USD",
        "CostOpsClient(base_url='https://costs.example.com')",
    ],
    "custom_interceptor.py": ["both work in both clients", "{'SubmitUsage': 2, 'GetCostSummary': 1}"],
    "error_handling.py": [
        "twice 503, then an answer: recorded as u-1",
        "no answer four times: connection reset (attempts: 4, may count: True)",
        "a key that is not known: unknown key",
        "500 four times: INTERNAL, request unknown",
        "429, without a retry: again after 30.0 s",
        "two rules broken, nothing sent: model_id, organization_id",
        "a wrong setting: base_url",
    ],
    "instrument_openai.py": ["chunks: ['Hello']", "u-1: 0.0075 USD"],
    "testing_your_code.py": ["3 tests passed"],
}
# What examples need that the development extra does not install.
NEEDED = {"instrument_openai.py": "openai"}


def test_every_example_is_known() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_example(name: str, tmp_path: Path) -> None:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name], reason="needs the extra [sdks]")
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=2 * MAX_WAIT
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines() == PRINTED[name]
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_the_example_of_tests_runs_under_pytest(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    options = ["-o", "asyncio_default_fixture_loop_scope=function", str(EXAMPLES / "testing_your_code.py")]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, one after another, as a kernel runs them; and the total of what they recorded."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    [path] = EXAMPLES.glob("*.ipynb")
    names: dict[str, Any] = {}
    shown: list[Any] = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, path.name, "exec"), names)
            if last is not None:
                shown.append(eval(compile(ast.Expression(last.value), path.name, "eval"), names))
    assert shown[0] == 90
    assert [len(axes.containers) for axes in shown[1:2]] == [3]
    assert len(names["series"]) in (31, 32)
    assert shown[3].rows()[0][2] == 30
