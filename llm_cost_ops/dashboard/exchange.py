"""One request of a browser and its response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

import msgspec

from llm_cost_ops.rpc.context import uuid7
from llm_cost_ops.rpc.status import RpcError, StatusCode

__all__ = ["Answer", "PageRequest", "Receive", "Scope", "Send", "path_of", "redirect", "send_answer"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_FORM_BYTES = 64 * 1024
MAX_QUERY_BYTES = 8 * 1024
MAX_FIELDS = 200
FORM_SECONDS = 10.0

# No script, style, image or frame of anybody else, and nothing inline.
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    ("content-security-policy", _CSP),
    ("x-content-type-options", "nosniff"),
    # Addresses hold what was filtered by, which is nobody else's business.
    ("referrer-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
)
# Browsers take it over TLS and from this machine only, and complain about it elsewhere.
_OVER_TLS = (("cross-origin-opener-policy", "same-origin"),)


class Answer(msgspec.Struct, kw_only=True):
    """A response: its body is bytes, or a stream of them."""

    status: int = 200
    headers: list[tuple[str, str]] = msgspec.field(default_factory=list)
    body: bytes | AsyncGenerator[bytes, None] = b""
    content_type: str = "text/html; charset=utf-8"
    cache: str = "no-store"


def redirect(location: str, cookie: str = "") -> Answer:
    """To another page of ours, by GET."""
    headers = [("location", location)] + ([("set-cookie", cookie)] if cookie else [])
    return Answer(status=303, headers=headers)


def path_of(scope: Scope) -> str:
    """The path below the prefix that the app is mounted at."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class PageRequest:
    """What a browser sent, decoded."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            self._headers.setdefault(name.lower(), value)
        self.id = uuid7()
        self.verb: str = scope["method"]
        self.root: str = scope.get("root_path", "")
        self.path = path_of(scope)
        self._scheme: str = scope.get("scheme", "http")
        self._raw_query: bytes = scope.get("query_string", b"")
        self.query: list[tuple[str, str]] = []

    def check(self) -> None:
        """Decode the query. Raises INVALID_ARGUMENT for one that is too long or not UTF-8."""
        if len(self._raw_query) > MAX_QUERY_BYTES:
            raise RpcError(StatusCode.INVALID_ARGUMENT, f"the query is longer than {MAX_QUERY_BYTES} bytes")
        self.query = _pairs(self._raw_query, "the query")

    def header(self, name: str) -> str:
        """A header's value, "" when it is not there."""
        return self._headers.get(name.encode(), b"").decode("latin-1").strip()

    def param(self, name: str, default: str = "") -> str:
        """The first value of a parameter in the query."""
        return next((value for key, value in self.query if key == name), default)

    @property
    def is_secure(self) -> bool:
        """Whether the browser speaks TLS: with this server, or with a proxy that says so."""
        return self._scheme == "https" or self.header("x-forwarded-proto") == "https"

    @property
    def host(self) -> str:
        """The name in the Host header, without the port."""
        host = _split(f"//{self.header('host')}")
        return "" if host is None else host.hostname or ""

    def cookie(self, name: str) -> str:
        """A cookie's value, "" when it is not there."""
        try:
            found = SimpleCookie(self.header("cookie")).get(name)
        except CookieError:
            return ""
        return "" if found is None else found.value

    def is_from_elsewhere(self) -> bool:
        """Whether another site's page made the browser send this."""
        site = self.header("sec-fetch-site")
        if site:
            return site not in ("same-origin", "none")
        origin = self.header("origin")
        named = _split(origin)
        return bool(origin) and (named is None or named.netloc != self.header("host"))

    async def left(self) -> None:
        """Wait until the browser has gone away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def form(self) -> dict[str, str]:
        """The fields of a form that was posted. Raises INVALID_ARGUMENT for what is none."""
        if self.header("content-type").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise RpcError(StatusCode.INVALID_ARGUMENT, "a form was expected", http_status=415)
        body = bytearray()
        try:
            async with asyncio.timeout(FORM_SECONDS):
                more = True
                while more:
                    part = await self._receive()
                    body += part.get("body", b"")
                    more = part["type"] == "http.request" and part.get("more_body", False)
                    if len(body) > MAX_FORM_BYTES:
                        message = f"a form may have at most {MAX_FORM_BYTES} bytes"
                        raise RpcError(StatusCode.INVALID_ARGUMENT, message, http_status=413)
        except TimeoutError:
            message = f"the form took more than {FORM_SECONDS:g} s"
            raise RpcError(StatusCode.DEADLINE_EXCEEDED, message, http_status=408) from None
        return {name: value.strip() for name, value in _pairs(bytes(body), "the form")}


def _split(address: str) -> SplitResult | None:
    """The parts of an address; None for what is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return None


def _pairs(data: bytes, what: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            data.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise RpcError(StatusCode.INVALID_ARGUMENT, f"{what} can't be decoded") from None


async def send_answer(answer: Answer, request: PageRequest, send: Send) -> None:
    """Send a response with the headers that every page has."""
    headers = [
        *_HEADERS,
        *(_OVER_TLS if request.is_secure else ()),
        ("cache-control", answer.cache),
        ("x-request-id", request.id),
        *answer.headers,
    ]
    body = answer.body
    if body or answer.status == 200:
        headers.append(("content-type", answer.content_type))
    if isinstance(body, bytes):
        headers.append(("content-length", str(len(body))))
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    if isinstance(body, bytes):
        await send({"type": "http.response.body", "body": b"" if request.verb == "HEAD" else body})
        return
    if request.verb != "HEAD":
        await _stream(body, request, send)
    await send({"type": "http.response.body", "body": b""})


async def _stream(pieces: AsyncGenerator[bytes, None], request: PageRequest, send: Send) -> None:
    """Send what there is, until the reader goes away: a server drops what is sent after that, unread."""
    gone = asyncio.create_task(request.left())
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    finally:
        gone.cancel()
