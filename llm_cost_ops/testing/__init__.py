"""What to test with, in your own suite: no server, no network, no real waiting.

    from llm_cost_ops.testing import Fault, ScriptedLeaf, VirtualRuntime, memory_client

    with memory_client() as client:                      # the whole engine, in memory
        client.usage.submit(...)

    leaf = ScriptedLeaf([Fault(503), Fault(503), receipt])     # fail twice, then answer
    client = CostOpsClient(base_url="http://test", leaf=leaf, runtime=VirtualRuntime())

pytest finds the fixtures `costops` and `async_costops` by itself once the package is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_cost_ops.testing.clients import async_memory_client, memory_client
    from llm_cost_ops.testing.interceptor_check import InterceptorCheckError, check_interceptor
    from llm_cost_ops.testing.leaf import Delay, Fault, Received, ScriptedLeaf
    from llm_cost_ops.testing.virtual_time import AsyncVirtualRuntime, VirtualRuntime

_HOMES = {
    "AsyncVirtualRuntime": "virtual_time",
    "Delay": "leaf",
    "Fault": "leaf",
    "InterceptorCheckError": "interceptor_check",
    "Received": "leaf",
    "ScriptedLeaf": "leaf",
    "VirtualRuntime": "virtual_time",
    "async_memory_client": "clients",
    "check_interceptor": "interceptor_check",
    "memory_client": "clients",
}

__all__ = [
    "AsyncVirtualRuntime",
    "Delay",
    "Fault",
    "InterceptorCheckError",
    "Received",
    "ScriptedLeaf",
    "VirtualRuntime",
    "async_memory_client",
    "check_interceptor",
    "memory_client",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
