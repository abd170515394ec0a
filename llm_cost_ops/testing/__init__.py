"""What to test with, in your own suite: no server, no network, no real waiting.

    from llm_cost_ops.testing import Fault, ScriptedTransport, VirtualRuntime, memory_client

    with memory_client() as client:                      # the whole engine, in memory
        client.usage.submit(...)

    transport = ScriptedTransport([Fault(503), Fault(503), receipt])     # fail twice, then answer
    client = CostOpsClient(base_url="http://test", transport=transport, runtime=VirtualRuntime())

pytest finds the fixtures `costops` and `async_costops` by itself once the package is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_cost_ops.testing.clients import async_memory_client, memory_client
    from llm_cost_ops.testing.interceptor_check import InterceptorCheckError, check_interceptor
    from llm_cost_ops.testing.scripted import Delay, Fault, Received, ScriptedTransport
    from llm_cost_ops.testing.virtual_time import AsyncVirtualRuntime, VirtualRuntime

_HOMES = {
    "AsyncVirtualRuntime": "virtual_time",
    "Delay": "scripted",
    "Fault": "scripted",
    "InterceptorCheckError": "interceptor_check",
    "Received": "scripted",
    "ScriptedTransport": "scripted",
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
    "ScriptedTransport",
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
