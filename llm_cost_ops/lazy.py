"""What is loaded when it is first used: the names of a package, so that importing it costs little; and
libraries that are not always installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["load_by_name", "missing_library"]

_BROUGHT_BY = {
    "psycopg": "llm-cost-ops[postgres]",
    "rich": "llm-cost-ops[cli]",
    "socksio": "httpx[socks]",
    "pandas": "pandas",
    "polars": "polars",
    **dict.fromkeys(("grpclib", "h2"), "llm-cost-ops[grpc]"),
    **dict.fromkeys(("grpc", "h11", "jinja2", "uvicorn"), "llm-cost-ops[server]"),
    **dict.fromkeys(("opentelemetry", "prometheus_client"), "llm-cost-ops[metrics]"),
}


def load_by_name(
    package: str, names_of: Mapping[str, str], install: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` (PEP 562) of a package; `names_of` gives the names in each submodule.

    Assign them where type checkers do not look, `if not TYPE_CHECKING:`, and import the names for these under
    `if TYPE_CHECKING:`. So a misspelt name is an error to them, as it is at run time. `install` is that of
    `missing_library`.
    """
    homes = {name: module for module, names in names_of.items() for name in names.split()}
    known = vars(sys.modules[package])

    def load(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f"{package}.{home}"), name)
        except ImportError as error:
            raise missing_library(error, f"{package}.{name}", install) from None
        known[name] = value
        return value

    return load, lambda: sorted({*known, *homes})


def missing_library(error: ImportError, what: str, install: str = "") -> ImportError:
    """The error for who wants `what`: it names the library and the `pip install` that brings it.

    `install` says what to install where that is another thing than the library's own extra. The error itself
    is given back for a library that no extra brings: that is a broken installation.
    """
    library = (error.name or "").partition(".")[0]
    package = install or _BROUGHT_BY.get(library)
    if package is None:
        return error
    shown = f"'{package}'" if "[" in package else package
    return ImportError(f"{what} needs {library}: pip install {shown}", name=error.name)
