"""Settings of the documentation; `make docs` builds it."""

from __future__ import annotations

import re
from importlib.metadata import version as installed
from typing import Any

project = "llm-cost-ops"
version = release = installed("llm-cost-ops")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "What LLM calls cost, exactly", "fixed_sidebar": True}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = True
# Types in signatures are names to read; most are not on a page of their own.
nitpick_ignore_regex = [(r"py:.*", r".*")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100


def _as_rest(*told: Any) -> None:
    """Docstrings are written to be read in an editor: backquotes, indented code and Args become reST's."""
    lines: list[str] = told[-1]
    lines[:] = [re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line) for line in lines]
    lines[:] = [re.sub(r"(?<=-)\*(?!\*)", r"\\*", line) for line in lines]
    made: list[str] = []
    arguments = False
    for line in lines:
        if line == "Args:":
            arguments = True
            made.append("")
            continue
        arguments = arguments and (not line or line.startswith("    "))
        if arguments and line:
            named = re.fullmatch(r"    (\w+): (.*)", line)
            made.append(f":param {named[1]}: {named[2]}" if named else line)
            continue
        after_text = len(made) > 1 and not made[-1] and made[-2] and not made[-2].startswith(" ")
        if line.startswith("    ") and after_text and not made[-2].endswith("::"):
            made[-1:] = ["", "::", ""]
        made.append(line)
    lines[:] = made


def _plain(*told: Any) -> tuple[Any, Any]:
    """The bounds of a 64-bit integer are no news."""
    signature, returned = told[-2:]
    if signature:
        signature = re.sub(r"Annotated\[int, [^]]*\]", "int", signature)
    return signature, returned


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _as_rest)
    app.connect("autodoc-process-signature", _plain)
