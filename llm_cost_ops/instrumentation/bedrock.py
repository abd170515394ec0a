"""bedrock-runtime of boto3 and aiobotocore: the client's own events, and the event streams of its answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec

from llm_cost_ops.instrumentation.calls import Call, Options

__all__ = ["subscribe", "unsubscribe"]

_SERVICE = "bedrock-runtime"
_UNIQUE = "llm-cost-ops"
_CALL = "llm_cost_ops.call"
_OPERATIONS = ("Converse", "ConverseStream", "InvokeModel", "InvokeModelWithResponseStream")
# The last event of a model's own stream, and what in it has its counts.
_METRICS = "amazon-bedrock-invocationMetrics"

_log = logging.getLogger("llm_cost_ops.instrumentation")


def subscribe(events: Any, options: Options) -> None:
    """Record the calls of a client by its events."""
    unsubscribe(events)

    def begin(params: Any, context: Any, **_: Any) -> None:
        try:
            model = str(params.get("modelId", ""))
            provider = options.provider or "aws"
            context[_CALL] = Call(options, "bedrock.converse", provider, known_host=True, model=model)
        except Exception:  # noqa: BLE001  # the caller's call goes on, whatever is wrong with ours
            _log.warning("a call can't be recorded", exc_info=True)

    def answered(http_response: Any, parsed: Any, context: Any, **_: Any) -> None:
        try:
            call = (context or {}).pop(_CALL, None)
            if call is not None and http_response.status_code < 300:
                _look(call, parsed)
        except Exception:  # noqa: BLE001  # as above
            _log.warning("an answer can't be recorded", exc_info=True)

    for name, identity, handler in _handlers(begin, answered):
        events.register(name, handler, identity)


def unsubscribe(events: Any) -> None:
    """Undo `subscribe`."""
    for name, identity, _ in _handlers(None, None):
        events.unregister(name, unique_id=identity)


def _handlers(begin: Any, answered: Any) -> Iterator[tuple[str, str, Any]]:
    """The names of the events, the ids under which they are handled, and by what."""
    for operation in _OPERATIONS:
        yield f"provide-client-params.{_SERVICE}.{operation}", f"{_UNIQUE}-begin-{operation}", begin
        yield f"after-call.{_SERVICE}.{operation}", f"{_UNIQUE}-answered-{operation}", answered


def _look(call: Call, parsed: dict[str, Any]) -> None:
    metadata = parsed.get("ResponseMetadata") or {}
    name = "stream" if "stream" in parsed else "body"
    if "body" in parsed:
        # In the model's own form, and its counts in headers or in the last event of a stream.
        call.api = "bedrock.invoke"
    if hasattr(parsed.get(name), "_event_generator") or name == "stream":
        counts: dict[str, Any] = {}
        call.body = lambda: {"ResponseMetadata": metadata, **counts}
        call.begin_stream()
        tee = _AsyncTee if hasattr(parsed[name], "__aiter__") else _SyncTee
        parsed[name] = tee(parsed[name], call, counts)
        return
    payload = {key: parsed[key] for key in parsed if key not in ("output", "body")}
    call.body = lambda: payload
    call.finish(finished=True)


class _Tee:
    """Stands before an EventStream, and sees its events."""

    def __init__(self, inner: Any, call: Call, counts: dict[str, Any]) -> None:
        self._inner = inner
        self._call = call
        self._counts = counts

    def close(self) -> None:
        """Close the stream."""
        try:
            self._inner.close()
        finally:
            self._finish(finished=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _take(self, event: dict[str, Any]) -> None:
        try:
            self._call.first_byte()
            if "metadata" in event:
                self._counts.update(event["metadata"])
            elif _METRICS.encode() in (data := event.get("chunk", {}).get("bytes", b"")):
                self._counts[_METRICS] = msgspec.json.decode(data)[_METRICS]
        except Exception:  # noqa: BLE001  # the event passes, whatever is wrong with us
            _log.warning("a stream can't be read", exc_info=True)

    def _finish(self, *, finished: bool) -> None:
        try:
            # After the counts nothing comes that is counted.
            self._call.finish(finished=finished or not self._counts.keys().isdisjoint(("usage", _METRICS)))
        except Exception:  # noqa: BLE001  # as above
            _log.warning("a call can't be recorded", exc_info=True)


class _SyncTee(_Tee):
    def __iter__(self) -> Iterator[Any]:
        finished = False
        try:
            for event in self._inner:
                self._take(event)
                yield event
            finished = True
        finally:
            self._finish(finished=finished)


class _AsyncTee(_Tee):
    """Stands before a stream of aiobotocore, whose events are awaited and which is closed as the other is."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        finished = False
        try:
            async for event in self._inner:
                self._take(event)
                yield event
            finished = True
        finally:
            self._finish(finished=finished)
