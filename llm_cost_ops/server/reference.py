"""The HTTP reference that the server itself shows: /openapi.json, and /docs to read and try it.

The viewer is Swagger UI, which `make assets` fetches into `assets/`; without it /docs lists the routes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from llm_cost_ops.server.calls import Receive, Scope, Send

__all__ = ["Reference"]

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


class Reference:
    """`/openapi.json` and `/docs`. They show the interface and no recorded data, so no key is needed."""

    def serves(self, scope: Scope) -> bool:
        """Whether a request is for one of them."""
        return _path(scope) in _PAGES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        kind, read = _PAGES[_path(scope)]
        verb = scope["method"]
        status, body = (200, read()) if verb in ("GET", "HEAD") else (405, b"")
        if body is None:
            status, body = 404, b""
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"content-security-policy", _POLICY.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if verb == "HEAD" else body})


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


@lru_cache(maxsize=1)
def _document() -> bytes:
    return _DOCUMENT.read_bytes()


@lru_cache(maxsize=1)
def _viewer() -> bytes:
    head, body = _PLAIN, _MISSING.format(rows=_rows())
    if all((_ASSETS / name).is_file() for name in _VIEWER):
        scripts = ("swagger-ui-bundle.js", "show.js")
        head = '<link rel="stylesheet" href="docs/swagger-ui.css">'
        body = "".join(f'<script src="docs/{name}"></script>' for name in scripts)
        body = f'<div id="reference"></div>{body}'
    return _FRAME.format(head=head, body=body).encode()


def _rows() -> str:
    paths: Mapping[str, Mapping[str, Any]] = msgspec.json.decode(_document())["paths"]
    return "".join(
        f"<tr><td><code>{verb.upper()} {escape(path)}</code></td><td>{escape(operation['summary'])}</td></tr>"
        for path, verbs in paths.items()
        for verb, operation in verbs.items()
    )


def _asset(name: str) -> bytes | None:
    path = _ASSETS / name
    return path.read_bytes() if path.is_file() else None


_PAGES: dict[str, tuple[str, Callable[[], bytes | None]]] = {
    "/openapi.json": ("application/json", _document),
    "/docs": ("text/html; charset=utf-8", _viewer),
    "/docs/show.js": ("text/javascript; charset=utf-8", lambda: _SHOW),
    **{f"/docs/{name}": (f"{kind}; charset=utf-8", partial(_asset, name)) for name, kind in _VIEWER.items()},
}
