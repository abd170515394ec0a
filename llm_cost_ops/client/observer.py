"""The client of the process, and how callbacks and span processors, which watch calls, have them recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack

from llm_cost_ops._gen.messages import UsageRecord
from llm_cost_ops.client.attribution import Attributes, AttributionFields, attributes_of, current_attributes
from llm_cost_ops.rpc.forks import ForkSafeLock

if TYPE_CHECKING:
    from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient
    from llm_cost_ops.client.recording import Recording

    AnyClient = CostOpsClient | AsyncCostOpsClient

__all__ = ["Observer", "default_client", "instrument"]

_SDKClient = TypeVar("_SDKClient")

_log = logging.getLogger("llm_cost_ops.observer")


class Observer:
    """Gives records to a client's recorder; nothing that goes wrong is raised into who is watched.

    Without a client it is the process's own, as for `llm_cost_ops.instrument`. `attribution` says whose the
    calls are, where neither the record nor the block of code around the call does.
    """

    def __init__(self, client: AnyClient | None, attribution: AttributionFields) -> None:
        self._stated = attributes_of(attribution)
        self._client = client

    def take(self, build: Callable[[], UsageRecord], within: Attributes | None = None) -> None:
        """Have a record written that is built later, in the recorder's thread.

        `within` is what the block of code around the call says, where that is not the one around this place.
        """
        try:
            inner = current_attributes() if within is None else within
            self._recording().observe(build, inner.over(self._stated))
        except Exception:  # noqa: BLE001  # whoever is watched has nothing to do with it
            _log.warning("a call was not recorded", exc_info=True)

    def flush(self, timeout: float) -> bool:
        """Wait until what was taken is sent, for at most so many seconds; whether it was."""
        return self._recording().flush(timeout).pending == 0

    def _recording(self) -> Recording:
        if self._client is None:
            self._client = default_client()
        return self._client._recording  # noqa: SLF001  # a part of the same client


_default: CostOpsClient | None = None
_lock = ForkSafeLock()


def default_client() -> CostOpsClient:
    """The client of the process, which the environment sets up; made when it is first asked for."""
    global _default  # noqa: PLW0603  # one for the process
    with _lock.held:
        if _default is None:
            from llm_cost_ops.client.clients import CostOpsClient

            made = CostOpsClient()
            # A signal handler may have been faster, in this very thread.
            _default = _default or made
        return _default


def instrument(
    sdk_client: _SDKClient,
    *,
    provider: str = "",
    stream_usage: bool | Literal["auto"] = "auto",
    **attribution: Unpack[AttributionFields],
) -> _SDKClient:
    """As CostOpsClient.instrument, with a client that the environment sets up (LLM_COST_OPS_BASE_URL, …).

    It is made when it is first used, shared by the process, and sends what is left when the process ends.
    """
    return default_client().instrument(
        sdk_client, provider=provider, stream_usage=stream_usage, **attribution
    )
