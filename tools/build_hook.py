"""Has a wheel that is built bring the files of others that the server's pages load, as `make assets` does.

Hatchling finds it by pyproject.toml. Without npm, or without its registry, the wheel is built all the same:
its pages then show their tables without plots, and say what is missing.
"""

from __future__ import annotations

import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = ["AssetsHook"]


class AssetsHook(BuildHookInterface[Any]):
    """Fetches what is not there yet, for a wheel that is no editable one."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects the files."""
        del build_data
        if version != "standard":
            return
        sys.path.insert(0, self.root)
        try:
            from tools.assets import fetch_missing

            fetch_missing()
        except RuntimeError as error:
            self.app.display_warning(f"the wheel has no plots and no viewer of the HTTP reference: {error}")
        finally:
            sys.path.remove(self.root)
