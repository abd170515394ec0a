"""Settings of the documentation; `make docs` builds it."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools import http_reference

project = "llm-cost-ops"
version = release = installed("llm-cost-ops")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"llm-cost-ops {version}"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5d4e", "color-brand-content": "#0b6b5a"},
    "dark_css_variables": {"color-brand-primary": "#5fd0b4", "color-brand-content": "#6fdcc0"},
}
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_show_copyright = False
# What is copied of a console is its commands, without the prompt and what they print.
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
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
            # A tree is no Python, which would have its words coloured.
            made[-1:] = ["", ".. code-block:: text" if any("+--" in each for each in lines) else "::", ""]
        made.append(line)
    lines[:] = made


def _plain(*told: Any) -> tuple[Any, Any]:
    """The bounds of a 64-bit integer are no news, and UNSET is a name for nobody to write; nor are the fields
    that a message from a newer version has, and what makes an empty list.
    """
    signature, returned = told[-2:]
    if signature:
        signature = re.sub(r"Annotated\[int, [^]]*\]", "int", signature)
        signature = re.sub(r"unknown_: Unknown \| UnsetType = UNSET,? ?", "", signature)
        signature = re.sub(r"(: dict\[[^=]*) = <factory>", r"\1 = {}", signature)
        signature = signature.replace("= <factory>", "= []").replace("= UNSET", "= ...")
        signature = signature.replace("WireDecimal", "Decimal")
    return signature, returned


def _with_reference(app: Any, name: str, source: list[str]) -> None:
    """The HTTP reference is made from the OpenAPI document each time."""
    if name == "http":
        source[0] = source[0].replace("<!-- every route -->", http_reference.read())


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _with_reference)
    app.connect("autodoc-process-docstring", _as_rest)
    app.connect("autodoc-process-signature", _plain)
