"""Names of a package that are loaded when they are first used, so that importing it costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["load_by_name"]


def load_by_name(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` (PEP 562) of a package whose names are in the submodules `homes`.

    Assign them where type checkers do not look, `if not TYPE_CHECKING:`, and import the names for these under
    `if TYPE_CHECKING:`. So a misspelt name is an error to them, as it is at run time.
    """
    names = vars(sys.modules[package])

    def load(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        names[name] = value = getattr(import_module(f"{package}.{home}"), name)
        return value

    return load, lambda: sorted({*names, *homes})
