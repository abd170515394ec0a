"""Libraries that are not always installed: what brings them."""

from __future__ import annotations

__all__ = ["missing_library"]

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
