"""A model for pydantic-ai that records what the model in it does.

    agent = Agent(CostOpsModel("openai:gpt-4o", client))

It can't see the attempts of a FallbackModel in it that failed, nor batches; put it around each model of the
fallback.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Unpack

from pydantic_ai.models.wrapper import WrapperModel

from llm_cost_ops.callbacks.records import counted_record, require
from llm_cost_ops.client.attribution import AttributionFields
from llm_cost_ops.client.observer import Observer
from llm_cost_ops.types import UsageQuality, UsageRecord

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import Model, StreamedResponse

    from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient

__all__ = ["CostOpsModel"]

# Responses of older ones do not say why they ended.
require("pydantic-ai-slim", "1.0.18")


class CostOpsModel(WrapperModel):
    """Records each request of a model, given as such or by name, whole and streamed.

    Without a client it is one that the environment sets up, as for `llm_cost_ops.instrument`. Calls count as
    those of the block of `attribute` around them, else as `attribution` says (the fields of `attribute`).
    Failed requests are not recorded; a stream that is broken off is of unknown usage.
    """

    def __init__(
        self,
        wrapped: Model | str,
        client: CostOpsClient | AsyncCostOpsClient | None = None,
        **attribution: Unpack[AttributionFields],
    ) -> None:
        super().__init__(wrapped)
        self._observer = Observer(client, attribution)

    async def request(self, *args: object, **kwargs: object) -> ModelResponse:
        """Make a request, and record its answer."""
        started = time.monotonic()
        response = await super().request(*args, **kwargs)
        self._observer.take(partial(_record, response, _since(started), complete=True))
        return response

    @asynccontextmanager
    async def request_stream(self, *args: object, **kwargs: object) -> AsyncGenerator[StreamedResponse]:
        """Make a request, and record its stream once it is over."""
        started = time.monotonic()
        async with super().request_stream(*args, **kwargs) as stream:
            ended = False
            try:
                yield stream
                ended = True
            finally:
                response = stream.get()
                complete = ended and response.finish_reason is not None
                self._observer.take(partial(_record, response, _since(started), complete=complete))


def _since(started: float) -> int:
    return int((time.monotonic() - started) * 1000)


def _record(response: ModelResponse, latency_ms: int, *, complete: bool) -> UsageRecord:
    usage = response.usage
    details = usage.details or {}
    reasoning = getattr(usage, "output_reasoning_tokens", 0) or details.get("reasoning_tokens", 0)
    record = counted_record(
        source="pydantic_ai",
        provider=response.provider_name or "",
        model=response.model_name or "",
        response_id=response.provider_response_id or "",
        latency_ms=latency_ms,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached=usage.cache_read_tokens,
        written=usage.cache_write_tokens,
        reasoning_tokens=reasoning,
        audio=(usage.input_audio_tokens, usage.cache_audio_read_tokens, usage.output_audio_tokens),
    )
    if not complete:
        record.quality = UsageQuality.UNKNOWN
    return record
