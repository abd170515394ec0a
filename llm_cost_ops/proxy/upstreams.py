"""The providers that calls are passed on to, and the connections to them."""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpcore

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.rules.providers import canonical_provider, provider_at
from llm_cost_ops.transports.http.client import AsyncConnectionPool
from llm_cost_ops.transports.http.exchange import origin_of, proxy_for
from llm_cost_ops.transports.net.tls import ssl_context

__all__ = ["RESERVED", "Answer", "Upstream", "upstreams_of"]

RESERVED = frozenset({"health", "ready"})
"""Paths of the proxy's own, which no upstream may be named after."""

MAX_IDLE = 100
KEEPALIVE_SECONDS = 15.0

# At DEBUG it logs the headers of answers, cookies too.
if logging.getLogger("httpcore").level == logging.NOTSET:
    logging.getLogger("httpcore").setLevel(logging.INFO)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Headers = list[tuple[bytes, bytes]]


def upstreams_of(urls: Mapping[str, str]) -> dict[str, Upstream]:
    """The upstreams by their names. ConfigurationError for a name or a URL that can't be one."""
    if not urls:
        rule = "must be given, such as openai=https://api.openai.com"
        raise ConfigurationError(f"upstream {rule}", parameter="upstream")
    return {name: Upstream(name, url) for name, url in urls.items()}


class Answer:
    """An answer whose body has not been read yet. Close it in any case."""

    def __init__(self, response: httpcore.Response, done: Callable[[], Awaitable[None]]) -> None:
        # The stream of an async connection, of which httpcore's types say that it may be a sync one too.
        stream: Any = response.stream
        self.status = response.status
        self.headers: Headers = [(name.lower(), value) for name, value in response.headers]
        # One iterator: another one would close the connection when this one is collected.
        self.parts: AsyncIterator[bytes] = aiter(stream)
        self._stream = stream
        self._done = done

    async def aclose(self) -> None:
        """Give the connection back; it is closed where the body was not read to its end."""
        try:
            await self._stream.aclose()
        finally:
            await self._done()


class Upstream:
    """One provider: its URL, its name, and connections that are kept for its next calls.

    `provider` is who serves the host; for a host that is not known it is the upstream's name.
    """

    def __init__(self, name: str, url: str) -> None:
        if not _NAME.fullmatch(name) or name in RESERVED:
            rule = "must be 1 to 64 of a-z, 0-9, '.', '_' and '-', and neither health nor ready"
            raise ConfigurationError(f"upstream {name[:64]!r}: the name {rule}", parameter="upstream")
        try:
            origin = origin_of(url)
        except ValueError as error:
            reason = str(error).removeprefix("base_url ")
            raise ConfigurationError(f"upstream {name}: the URL {reason}", parameter="upstream") from None
        parts = urlsplit(origin)
        self.name = name
        self.host = parts.hostname or ""
        self.provider = provider_at(self.host) or canonical_provider(name)
        self.authority = parts.netloc.encode()
        self.base_path = parts.path.encode()
        port = parts.port
        self._url = httpcore.URL(scheme=parts.scheme, host=self.host, port=port, target="/")
        proxy = proxy_for(origin, None)
        secure = parts.scheme == "https" or (proxy is not None and proxy.url.scheme == "https")
        # Reading the authorities takes a while: not for plain HTTP.
        context = ssl_context(None, verify=True) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._pool = AsyncConnectionPool(
            verify=context, proxy=proxy, max_idle=MAX_IDLE, keepalive_expiry=KEEPALIVE_SECONDS
        )

    async def send(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        content: bytes | AsyncIterable[bytes],
        connect_timeout: float,
    ) -> Answer:
        """Send a request, and give its answer once that has begun. Raises httpcore's exceptions."""
        url = httpcore.URL(
            scheme=self._url.scheme, host=self._url.host, port=self._url.port, target=self.base_path + target
        )
        extensions = {"timeout": {"connect": connect_timeout}}
        request = httpcore.Request(method, url, headers=headers, content=content, extensions=extensions)
        return Answer(*await self._pool.open(request))

    async def aclose(self) -> None:
        """Let go of the connections that wait."""
        await self._pool.aclose()
