"""The recording proxy: it passes calls on to providers, and records what each one used.

from llm_cost_ops.proxy import asgi_app, serve

app = asgi_app({"openai": "https://api.openai.com"}, client)   # for an ASGI server
serve({"openai": "https://api.openai.com"}, client, http="127.0.0.1:8090")   # until SIGTERM
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llm_cost_ops.rpc.extras import missing_library

if TYPE_CHECKING:
    from llm_cost_ops.proxy.limits import ProxyLimits
    from llm_cost_ops.proxy.running import asgi_app, serve

_HOMES = {"ProxyLimits": "limits", "asgi_app": "running", "serve": "running"}

__all__ = ["ProxyLimits", "asgi_app", "serve"]


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
