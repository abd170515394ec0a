"""The dashboard: server-rendered pages over the service, at `/` of the server.

`Dashboard` is what the ASGI app hands its requests to. Every figure comes from the service's own methods,
called as whoever is signed in, so that roles and organizations hold here as they do for the API.
"""

from __future__ import annotations

from llm_cost_ops.dashboard.app import Dashboard

__all__ = ["Dashboard"]
