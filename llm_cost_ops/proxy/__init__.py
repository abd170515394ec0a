"""The recording proxy: it passes calls on to providers, and records what each one used.

from llm_cost_ops.proxy import asgi_app, serve

app = asgi_app({"openai": "https://api.openai.com"}, client)   # for an ASGI server
serve({"openai": "https://api.openai.com"}, client, http="127.0.0.1:8090")   # until SIGTERM
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_cost_ops.lazy import load_by_name

if TYPE_CHECKING:
    from llm_cost_ops.proxy.limits import ProxyLimits
    from llm_cost_ops.proxy.running import asgi_app, serve

_NAMES = {"limits": "ProxyLimits", "running": "asgi_app serve"}

__all__ = ["ProxyLimits", "asgi_app", "serve"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = load_by_name(__name__, _NAMES)
