"""The HTTP reference of the documentation, as Markdown, from the OpenAPI document that the protos generate.

`docs/conf.py` puts it into `docs/http.md` when the documentation is built, so that it is never behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["DOCUMENT", "read", "reference"]

DOCUMENT = Path(__file__).parents[1] / "llm_cost_ops" / "_gen" / "openapi.json"

_Node: TypeAlias = Mapping[str, Any]


def reference(document: _Node) -> str:
    """Every route with its parameters, bodies and answers, by tag, and every message below."""
    lines: list[str] = []
    for tag in document["tags"]:
        lines += [f"## {tag['name'].capitalize()}", "", _prose(tag["description"]), ""]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    lines += _operation(document, f"{method.upper()} {path}", operation)
    lines += ["## Messages", ""]
    for name, schema in document["components"]["schemas"].items():
        lines += _message(name, schema)
    return "\n".join(lines)


def read() -> str:
    """The reference of this version."""
    return reference(json.loads(DOCUMENT.read_text(encoding="utf-8")))


def _operation(document: _Node, title: str, operation: _Node) -> Iterator[str]:
    yield from (f"### {title}", "", _prose(f"{operation['summary']}."), "")
    if "description" in operation:
        yield from (_prose(operation["description"]), "")
    parameters = [_resolved(document, each) for each in operation["parameters"]]
    yield from _table(
        ("parameter", "in", "type", ""),
        [
            (f"`{each['name']}`", each["in"], _type(each["schema"]), _cell(each["description"]))
            for each in parameters
        ],
    )
    if "requestBody" in operation:
        yield from (f"Body: {_content(operation['requestBody'])}", "")
    answers = [(status, _resolved(document, each)) for status, each in operation["responses"].items()]
    yield from _table(
        ("status", "body", ""),
        [(status, _content(each), _cell(each["description"])) for status, each in answers],
    )


def _message(name: str, schema: _Node) -> Iterator[str]:
    yield from (f"### {name}", "", _prose(schema.get("description", "")), "")
    if "enum" in schema:
        yield from ("One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + ".", "")
        return
    required = schema.get("required", ())
    rows = []
    for field, kind in schema.get("properties", {}).items():
        must = "**required** " if field in required else ""
        rows.append((f"`{field}`", _type(kind), must + _cell(kind.get("description", ""))))
    if rows:
        yield from _table(("field", "type", ""), rows)


def _resolved(document: _Node, node: _Node) -> _Node:
    """What a $ref stands for."""
    if "$ref" not in node:
        return node
    found: Any = document
    for part in node["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found  # type: ignore[no-any-return]  # JSON


def _content(node: _Node) -> str:
    return " or ".join(
        f"{_type(each['schema'])} as `{kind}`" for kind, each in node.get("content", {}).items()
    )


def _type(schema: _Node) -> str:
    """A type in a few words: messages are links, and bounds stand after it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for union in ("oneOf", "anyOf", "allOf"):
        if union in schema:
            return " or ".join(_type(each) for each in schema[union])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"map to {_type(schema['additionalProperties'])}"
    kinds = [kind] if isinstance(kind, str) else list(kind)
    text = " or ".join(kinds)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("format") not in (None, "int64", "int32"):
        text += f" ({schema['format']})"
    return text + _bounds(schema)


def _bounds(schema: _Node) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        return f", {least:,} to {most:,}"
    if "maxLength" in schema:
        return f", at most {schema['maxLength']} characters"
    return ""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if not rows:
        return
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _prose(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")


def _cell(text: str) -> str:
    return " ".join(_prose(text).replace("|", "\\|").split())
