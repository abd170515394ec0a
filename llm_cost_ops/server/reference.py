"""The HTTP reference that the server itself shows: /openapi.json, and /docs to read and try it.

The viewer is Swagger UI, which `make assets` fetches into `assets/`; without it /docs lists the routes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from llm_cost_ops.server.http import Page

__all__ = ["REFERENCE"]

_DOCUMENT = Path(__file__).parents[1] / "_gen" / "openapi.json"
_ASSETS = Path(__file__).with_name("assets")
_VIEWER = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SHOW = b"""\
window.addEventListener("load", () => {
  const url = document.body.dataset.document;
  SwaggerUIBundle({ url, dom_id: "#reference", deepLinking: true, docExpansion: "list", validatorUrl: null });
});
"""
_FRAME = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>llm_cost_ops: HTTP reference</title>{head}</head>
<body data-document="openapi.json">{body}</body>
</html>
"""
_PLAIN = """\
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color-scheme: light dark }
code { font-family: ui-monospace, monospace }
td { padding: .25rem 1rem .25rem 0; vertical-align: top }
</style>
"""
_MISSING = """\
<h1>llm_cost_ops: HTTP reference</h1>
<p>The whole of it is in <a href="openapi.json">openapi.json</a>, for any OpenAPI viewer. The viewer that
would stand here is not installed: in a clone of the project, <code>make assets</code> fetches it.</p>
<table>{rows}</table>
"""


@lru_cache(maxsize=1)
def _document() -> Page:
    return Page("application/json", _DOCUMENT.read_bytes())


@lru_cache(maxsize=1)
def _viewer() -> Page:
    if all((_ASSETS / name).is_file() for name in _VIEWER):
        head = '<link rel="stylesheet" href="docs/swagger-ui.css">'
        scripts = ("swagger-ui-bundle.js", "show.js")
        body = "".join(f'<script src="docs/{name}"></script>' for name in scripts)
        body = f'<div id="reference"></div>{body}'
    else:
        head, body = _PLAIN, _MISSING.format(rows=_rows())
    return _page(_FRAME.format(head=head, body=body))


def _rows() -> str:
    paths: Mapping[str, Mapping[str, Any]] = msgspec.json.decode(_document().body)["paths"]
    return "".join(
        f"<tr><td><code>{verb.upper()} {escape(path)}</code></td><td>{escape(operation['summary'])}</td></tr>"
        for path, verbs in paths.items()
        for verb, operation in verbs.items()
    )


def _page(text: str) -> Page:
    return Page("text/html; charset=utf-8", text.encode(), (("content-security-policy", _POLICY),))


def _asset(name: str, kind: str) -> Callable[[], Page | None]:
    @lru_cache(maxsize=1)
    def read() -> Page | None:
        path = _ASSETS / name
        return Page(f"{kind}; charset=utf-8", path.read_bytes()) if path.is_file() else None

    return read


REFERENCE: dict[str, Callable[[], Page | None]] = {
    "/openapi.json": _document,
    "/docs": _viewer,
    "/docs/show.js": lambda: Page("text/javascript; charset=utf-8", _SHOW),
    **{f"/docs/{name}": _asset(name, kind) for name, kind in _VIEWER.items()},
}
"""The pages by path. They tell how to ask, and nothing that was recorded: no key is needed for them."""
