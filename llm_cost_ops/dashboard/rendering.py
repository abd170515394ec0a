"""From a template and its values to HTML, and the files that pages load."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from pathlib import Path

import jinja2

from llm_cost_ops.dashboard import figures

__all__ = ["asset", "has_charts", "render"]

_HERE = Path(__file__).parent
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

# Our own files, and those of others that `make assets` fetches.
_FILES = {
    "dashboard.css": _HERE / "static" / "dashboard.css",
    "dashboard.js": _HERE / "static" / "dashboard.js",
    "icon.svg": _HERE / "static" / "icon.svg",
    "uplot.js": _HERE / "assets" / "uPlot.iife.min.js",
    "uplot.css": _HERE / "assets" / "uPlot.min.css",
}


def render(template: str, values: dict[str, object]) -> bytes:
    """A page as HTML. Every value is escaped, whatever it is."""
    return _templates().get_template(template).render(values).encode()


def has_charts() -> bool:
    """Whether the library that draws them is there."""
    return asset("uplot.js") is not None and asset("uplot.css") is not None


def asset(name: str) -> tuple[bytes, str] | None:
    """A file that pages load, with its content type; None when it is not there."""
    # Whoever connects asks for any name: only those of files are kept.
    return _read(name) if name in _FILES else None


@cache
def _read(name: str) -> tuple[bytes, str] | None:
    path = _FILES[name]
    return (path.read_bytes(), _TYPES[path.suffix]) if path.is_file() else None


@cache
def _digest(name: str) -> str:
    found = asset(name)
    return "" if found is None else blake2b(found[0], digest_size=6).hexdigest()


@cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for name in figures.__all__:
        templates.filters[name] = getattr(figures, name)
    templates.globals.update(
        change=figures.change,
        ratio=figures.ratio,
        share=figures.share,
        digest=_digest,
    )
    return templates
