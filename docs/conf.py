"""Settings of the documentation; `make docs` builds it."""

from __future__ import annotations

from importlib.metadata import version as installed

project = "llm-cost-ops"
version = release = installed("llm-cost-ops")
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "What LLM calls cost, exactly", "fixed_sidebar": True}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = True
