"""The service's listeners: the ASGI app to mount in another one, and the process that serves by itself.

from llm_cost_ops.server import asgi_app, serve

app = asgi_app("sqlite:///costs.db")                 # for uvicorn, or app.mount("/costs", ...)
serve("costs.db", http="127.0.0.1:8080")             # until SIGTERM
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_cost_ops.lazy import load_by_name

if TYPE_CHECKING:
    from llm_cost_ops.server.limits import AsgiLimits
    from llm_cost_ops.server.running import asgi_app, serve

_NAMES = {"limits": "AsgiLimits", "running": "asgi_app serve"}

__all__ = ["AsgiLimits", "asgi_app", "serve"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = load_by_name(__name__, _NAMES)
