"""The walk of a new user: an empty environment, the wheel, an SDK, two lines, and `llm-cost-ops costs`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from tests.sdk_stub import Stub

ROOT = Path(__file__).parents[3]
PROGRAM = """
import llm_cost_ops, openai

llm = llm_cost_ops.instrument(openai.OpenAI(), labels={"feature": "search"})

messages = [{"role": "user", "content": "hi"}]
print(llm.chat.completions.create(model="gpt-4o", messages=messages).usage.total_tokens)
for chunk in llm.chat.completions.create(model="gpt-4o", messages=messages, stream=True,
                                         stream_options={"include_usage": True}):
    pass
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints. Nothing of this process's own Python is seen by it."""
    names = ("HOME", "PATH", "TMPDIR", "LANG")
    kept = {name: value for name, value in os.environ.items() if name in names or "pip" in name.lower()}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_new_user_sees_what_calls_cost(stub: Stub, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("llm_cost_ops-*.whl")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    openai = next(each for each in project["optional-dependencies"]["sdks"] if each.startswith("openai=="))
    venv.create(tmp_path / "venv")
    programs = tmp_path / "venv/bin"
    # This environment's pip, and no file compiled that is not imported: half of the time.
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    run(*pip, "install", "--quiet", "--no-compile", wheel, openai, cwd=tmp_path)
    installed = run(*pip, "list", "--format=freeze", cwd=tmp_path)
    # Tables of the command line need nothing more.
    assert "rich==" not in installed

    ours = {
        "LLM_COST_OPS_BASE_URL": f"sqlite:///{tmp_path}/costs.db",
        "LLM_COST_OPS_ORGANIZATION_ID": "acme",
    }
    theirs = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": f"{stub.url}/v1"}
    assert run(programs / "python", "-c", PROGRAM, cwd=tmp_path, **ours, **theirs) == "1007\n"
    assert len(stub.requests) == 2

    shown = run(programs / "llm-cost-ops", "costs", cwd=tmp_path, **ours)
    assert re.search(r"^openai +gpt-4o +2 +2,014 +0\.00514$", shown, re.MULTILINE), shown
    # 1000 tokens in at 2.50 and 7 out at 10 dollars a million, twice.
    assert "0.00514 USD for 2 requests and 2,014 tokens" in shown
    by_label = run(programs / "llm-cost-ops", "costs", "--group-by", "label:feature", cwd=tmp_path, **ours)
    assert re.search(r"^search +2 ", by_label, re.MULTILINE), by_label
