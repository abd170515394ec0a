"""The proxy as an ASGI app: which upstream a request is for, who calls, and what it may take."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal
from urllib.parse import quote, unquote

from llm_cost_ops.client.attribution import Attributes
from llm_cost_ops.instrumentation.calls import Call, Options, Sink, model_in_path
from llm_cost_ops.instrumentation.providers import api_of, bedrock_model
from llm_cost_ops.proxy.attribution import stated_of, trace_of
from llm_cost_ops.proxy.callers import Callers
from llm_cost_ops.proxy.limits import ProxyLimits, RefusedError
from llm_cost_ops.proxy.passing import Passing
from llm_cost_ops.proxy.upstreams import RESERVED, Upstream
from llm_cost_ops.server.calls import Receive, Scope, Send

__all__ = ["ProxyApp"]

SOURCE = "proxy"

_log = logging.getLogger("llm_cost_ops.proxy")

# Segments that a provider may take as the way to another part of its host.
# Also between encoded slashes, and backslashes: some servers take these for what they stand for.
_DOTS = re.compile(rb"(?:[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?=[/\\]|%2f|%5c|$)", re.IGNORECASE)


class ProxyApp:
    """Passes `/<upstream>/<path>` on to an upstream, and records each call below 300 that is billed.

    `sink` takes the records, `defaults` say whose they are where a request does not. `close` is awaited at
    the end of the lifespan, once the connections are closed.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        sink: Sink,
        callers: Callers,
        *,
        defaults: Attributes,
        limits: ProxyLimits,
        stream_usage: bool | Literal["auto"] = "auto",
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._upstreams = upstreams
        self._sink = sink
        self.callers = callers
        self._defaults = defaults
        self._limits = limits
        self._stream_usage: bool | Literal["auto"] = stream_usage
        self._close = close
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._draining = False
        # Hosts that did not take the question for usage.
        self._refusing: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            # Closed before it is accepted: the server answers 403.
            await receive()
            await send({"type": "websocket.close"})
        else:
            raise NotImplementedError(f"no {scope['type']} here")

    def drain(self) -> None:
        """Say on /ready that no more calls are to come."""
        self._draining = True

    async def aclose(self) -> None:
        """End the calls that are left, and close the connections; may be called twice."""
        left = [task for task in self._in_flight if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        # What was seen of them is recorded before the recorder is closed.
        await asyncio.gather(*left, return_exceptions=True)
        for upstream in self._upstreams.values():
            await upstream.aclose()
        if self._close is not None:
            await self._close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        # The app may be mounted below a prefix of a bigger one.
        path = raw.removeprefix(quote(scope.get("root_path", "")).encode())
        # Any other form of a target, such as one with a scheme and a host, has no slash first.
        name, _, rest = path[1:].partition(b"/") if path[:1] == b"/" else (b"", b"", b"")
        first = name.decode("latin-1")
        if first in RESERVED and not rest:
            await _tell(send, scope, *self._state(first))
            return
        passing = None
        task = asyncio.current_task()
        assert task is not None
        self._in_flight.add(task)
        try:
            passing = await self._begun(scope, first, b"/" + rest, receive, send)
            await passing.run()
        except RefusedError as error:
            await _tell(send, scope, error.status, error.body(), retry=error.status == 503)
        except Exception:
            _log.exception("a call to %s failed", first[:64])
            if passing is not None and passing.begun:
                raise
            await _tell(send, scope, 500, RefusedError(500, "internal_error", "internal error").body())
        finally:
            self._in_flight.discard(task)

    def _state(self, asked: str) -> tuple[int, bytes]:
        if asked == "ready" and self._draining:
            return 503, b'{"status":"draining"}'
        return 200, b'{"status":"ok"}'

    async def _begun(self, scope: Scope, name: str, path: bytes, receive: Receive, send: Send) -> Passing:
        """What passes a request on. RefusedError for one that is not passed on."""
        upstream = self._upstreams.get(name)
        if upstream is None:
            raise RefusedError(
                404, "no_such_upstream", "a path begins with the name of an upstream, such as /openai/v1"
            )
        if len(self._in_flight) > self._limits.max_calls:
            raise RefusedError(503, "too_many_calls", "the proxy has as many calls in flight as it takes")
        if _DOTS.search(path):
            raise RefusedError(400, "invalid_path", "a path may not have segments of dots")
        headers: list[tuple[bytes, bytes]] = [(name.lower(), value) for name, value in scope["headers"]]
        if any(name == b"upgrade" and value.lower() == b"websocket" for name, value in headers):
            raise RefusedError(
                501, "no_websockets", "websockets are not passed on, such as those of realtime"
            )
        stated = stated_of(headers, self._defaults)
        named = stated.attributes.organization_id
        organization = await self.callers.organization(stated.api_key, named, self._defaults.organization_id)
        passing = Passing(scope, path, headers, upstream, self._limits, receive, send)
        # As an SDK's client knows it: an ARN of Bedrock comes with its colons and slashes encoded.
        text = unquote(path.decode("latin-1"))
        api = api_of(text, upstream.provider) if scope["method"] == "POST" else ""
        if not api:
            return passing
        if not organization:
            rule = "is needed: neither the API key nor the proxy says whose the calls are"
            raise RefusedError(400, "no_organization", f"x-lco-organization {rule}")
        attributes = Attributes(organization_id=organization).over(stated.attributes)
        options = Options(
            sink=self._sink, attributes=lambda: attributes, stream_usage=self._stream_usage, source=SOURCE
        )
        billed = bedrock_model(text)
        call = Call(options, api, upstream.provider, known_host=True, model=billed or model_in_path(text))
        call.billed_model = billed
        call.key = stated.idempotency_key
        call.trace = trace_of(passing.header(b"traceparent"))
        passing.record(call, options, self._refusing)
        return passing


async def _tell(send: Send, scope: Scope, status: int, body: bytes, *, retry: bool = False) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
