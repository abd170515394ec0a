"""The service's listeners: the ASGI app to mount in another one, and the process that serves by itself.

from llm_cost_ops.server import asgi_app, serve

app = asgi_app("sqlite:///costs.db")                 # for uvicorn, or app.mount("/costs", ...)
serve("costs.db", http="127.0.0.1:8080")             # until SIGTERM
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llm_cost_ops.rpc.extras import missing_library

if TYPE_CHECKING:
    from llm_cost_ops.server.limits import AsgiLimits
    from llm_cost_ops.server.running import asgi_app, serve

_HOMES = {"AsgiLimits": "limits", "asgi_app": "running", "serve": "running"}

__all__ = ["AsgiLimits", "asgi_app", "serve"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{home}"), name)
    except ImportError as error:
        raise missing_library(error, f"{__name__}.{name}") from None
    globals()[name] = value
    return value
