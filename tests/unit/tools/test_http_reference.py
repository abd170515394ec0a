"""The HTTP page of the documentation: it has every route and message, and its examples work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conformance.clients import running_server
from tests.waiting import MAX_WAIT
from tools.http_reference import DOCUMENT, read, reference

PAGE = Path(__file__).resolve().parents[3] / "docs" / "http.md"
EXAMPLES = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_route_and_message_is_there_once() -> None:
    document = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    headings = [line.removeprefix("### ") for line in read().splitlines() if line.startswith("### ")]
    routes = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert sorted(headings) == sorted([*routes, *document["components"]["schemas"]])


def test_every_field_and_parameter_is_named() -> None:
    document = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    text = read()
    for schema in document["components"]["schemas"].values():
        for field in schema.get("properties", {}):
            assert f"| `{field}` |" in text
    for methods in document["paths"].values():
        for operation in methods.values():
            for each in operation["parameters"]:
                name = (
                    each.get("name")
                    or document["components"]["parameters"][each["$ref"].rpartition("/")[2]]["name"]
                )
                assert f"| `{name}` |" in text


def test_links_lead_to_messages_of_the_page() -> None:
    text = read()
    targets = {line.removeprefix("### ").lower() for line in text.splitlines() if line.startswith("### ")}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= targets


def test_texts_do_not_break_a_table_or_become_markup() -> None:
    document = {
        "tags": [{"name": "t", "description": "d"}],
        "paths": {},
        "components": {
            "schemas": {
                "M": {
                    "type": "object",
                    "properties": {"f": {"type": "string", "description": "a | <b>\n*c*"}},
                }
            }
        },
    }
    assert "| `f` | string | a \\| &lt;b> \\*c\\* |" in reference(document)


def test_the_page_takes_the_reference() -> None:
    assert PAGE.read_text(encoding="utf-8").count("<!-- every route -->") == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples want curl")
def test_the_examples_work_in_order(tmp_path: Path) -> None:
    assert len(EXAMPLES) >= 4
    with running_server(tmp_path, "--http", "127.0.0.1:0") as urls:
        for example in EXAMPLES:
            command = example.replace("http://127.0.0.1:8080", urls["http"])
            done = subprocess.run(
                ["sh", "-ec", command],
                capture_output=True,
                text=True,
                timeout=2 * MAX_WAIT,
                check=False,
                cwd=tmp_path,
            )
            assert done.returncode == 0, (example, done.stderr)
            lines = done.stdout.splitlines()
            assert lines
            assert all(json.loads(line) for line in lines)
    assert len(lines) == 3, "the export has the records of the examples before it"
