"""What to test with, in your own suite: no server, no network, no real waiting.

    from llm_cost_ops.testing import Fault, ScriptedTransport, VirtualRuntime, memory_client

    with memory_client() as client:                      # the whole engine, in memory
        client.usage.submit(...)

    transport = ScriptedTransport([Fault(503), Fault(503), receipt])     # fail twice, then answer
    client = CostOpsClient(base_url="http://test", transport=transport, runtime=VirtualRuntime())

pytest finds the fixtures `costops` and `async_costops` by itself once the package is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_cost_ops.lazy import load_by_name

if TYPE_CHECKING:
    from llm_cost_ops.testing.clients import async_memory_client, memory_client
    from llm_cost_ops.testing.interceptor_check import InterceptorCheckError, check_interceptor
    from llm_cost_ops.testing.scripted import Delay, Fault, Received, ScriptedTransport
    from llm_cost_ops.testing.virtual_time import AsyncVirtualRuntime, VirtualRuntime

_NAMES = {
    "clients": "async_memory_client memory_client",
    "interceptor_check": "InterceptorCheckError check_interceptor",
    "scripted": "Delay Fault Received ScriptedTransport",
    "virtual_time": "AsyncVirtualRuntime VirtualRuntime",
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

if not TYPE_CHECKING:
    __getattr__, __dir__ = load_by_name(__name__, _NAMES)
