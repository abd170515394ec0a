"""The examples of the pages on callbacks and OpenTelemetry, as they stand there, against the stub.

A line `<!-- stub: MODULE -->` before a block makes it run where the module is installed: one record is left.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_cost_ops import CostOpsClient
from tests.sdk_stub import INPUT, OUTPUT, Stub

DOCS = Path(__file__).resolve().parents[3] / "docs"
BLOCK = re.compile(r"^<!-- stub: (\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    pytest.param(*found, id=found[0])
    for page in ("callbacks.md", "opentelemetry.md")
    for found in BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "code"), EXAMPLES)
def test_example(module: str, code: str, stub: Stub, tmp_path: Path) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    if found is None:
        pytest.skip(f"{module} is not installed")
    assert len(code.splitlines()) < 12
    ledger = f"sqlite:///{tmp_path}/costs.db"
    url = f"{stub.url}/v1"
    environment = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LLM_COST_OPS_BASE_URL": ledger,
        "LLM_COST_OPS_ORGANIZATION_ID": "acme",
        "OPENAI_API_BASE": url,
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": url,
        "PYTHONPATH": str(DOCS.parent),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    with CostOpsClient(base_url=ledger) as client:
        [record] = client.usage.list(organization_id="acme")
    assert (record.input_tokens, record.output_tokens, record.provider) == (INPUT, OUTPUT, "openai")
    assert record.estimated_cost


def test_there_is_one_for_each() -> None:
    assert len(EXAMPLES) == 6
