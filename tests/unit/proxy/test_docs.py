"""The examples of docs/proxy.md run, against a stub in place of the providers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from tests.proxies import running_proxy
from tests.sdk_stub import running_stub
from tests.unit.instrumentation.matrix import only_record

PAGE = Path(__file__).resolve().parents[3] / "docs" / "proxy.md"
ADDRESS = "http://127.0.0.1:8090"
EXAMPLES = re.findall(r"<!-- proxied -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3
    assert all(len(example.splitlines()) < 12 for example in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=["openai", "anthropic", "headers"])
def test_an_example_is_recorded(client: CostOpsClient, monkeypatch: pytest.MonkeyPatch, example: str) -> None:
    for sdk in ("openai", "anthropic"):
        pytest.importorskip(sdk, reason="needs the extra [sdks]")
        monkeypatch.setenv(f"{sdk.upper()}_API_KEY", "sk-1")
    assert ADDRESS in example
    with running_stub() as stub:
        upstreams = {"openai": stub.url, "anthropic": stub.url}
        with running_proxy(upstreams, client) as url:
            names: dict[str, Any] = {}
            exec(example.replace(ADDRESS, url), names)
            (names.get("llm") or names["claude"]).close()
        record = only_record(client, "measured")
    if "x-lco" in example:
        assert (record.project_id, record.user_id) == ("support", "u-1")
        assert record.labels == {"feature": "search"}
