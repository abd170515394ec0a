"""From a base URL to a connected HTTP/2 connection: names, addresses, proxies and TLS."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from llm_cost_ops.transports.grpc.connection import CallConnection
from llm_cost_ops.transports.net.dial import connect, connect_any
from llm_cost_ops.transports.net.proxies import environment_proxy

__all__ = ["Target", "dial", "proxy_of", "target_of"]

# Seconds for a connect with all its addresses, and TLS, where no call's deadline is sooner.
MAX_DIAL = 20.0

MAX_PROXY_ANSWER = 8192


class Target(NamedTuple):
    """Where calls go: a host and a port, or the path of a Unix socket."""

    url: str
    host: str
    port: int
    path: str
    tls: bool

    @property
    def authority(self) -> str:
        """What HTTP/2 calls the server."""
        if self.path:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.tls and self.port == 443 else f"{host}:{self.port}"


def target_of(base_url: str) -> Target:
    """The target of grpc://host:port, grpcs://host[:443] or grpc:///path/to.sock. Raises ValueError."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"base_url is not a URL: {error}") from None
    tls = parts.scheme == "grpcs"
    if parts.scheme not in {"grpc", "grpcs"}:
        raise ValueError("base_url must begin with grpc:// or grpcs://")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("base_url may not have credentials, a query or a fragment")
    path = unquote(parts.path)
    if not parts.hostname:
        if tls or port is not None or len(path) < 2:
            raise ValueError("base_url must name a host, or be grpc:///path/to.sock")
        return Target(base_url, "", 0, path, tls=False)
    if path not in {"", "/"}:
        raise ValueError("base_url of a gRPC server has no path")
    if port is None and not tls:
        raise ValueError("base_url must name a port, such as grpc://127.0.0.1:50051")
    return Target(base_url.rstrip("/"), parts.hostname, 443 if port is None else port, "", tls)


def proxy_of(target: Target, proxy: str | None) -> SplitResult | None:
    """The proxy to a target: the one given, else what the environment says. Raises ValueError."""
    if target.path:
        return None
    if proxy is None:
        names = ("grpc", "https" if target.tls else "http", "all")
        proxy = environment_proxy(names, target.host, target.port)
    if not proxy:
        return None
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        _ = parts.port
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("proxy of a gRPC client must be http://host:port, which tunnels with CONNECT")
    return parts


async def dial(
    target: Target,
    tls: ssl.SSLContext | None,
    proxy: SplitResult | None,
    on_lost: Callable[[CallConnection], None],
) -> CallConnection:
    """Connect. Raises OSError, or one of its kinds: ssl.SSLError, socket.gaierror, TimeoutError."""
    async with asyncio.timeout(MAX_DIAL):
        if target.path:
            connected = await connect((socket.AF_UNIX, target.path))
        elif proxy is not None:
            connected = await connect_any(proxy.hostname or "", proxy.port or 80)
            try:
                await _tunnel(connected, target, proxy)
            except BaseException:
                connected.close()
                raise
        else:
            connected = await connect_any(target.host, target.port)
        return await _begin(connected, target, tls, on_lost)


async def _begin(
    connected: socket.socket,
    target: Target,
    tls: ssl.SSLContext | None,
    on_lost: Callable[[CallConnection], None],
) -> CallConnection:
    try:
        transport, connection = await asyncio.get_running_loop().create_connection(
            lambda: CallConnection(on_lost),
            sock=connected,
            ssl=tls,
            server_hostname=target.host if tls is not None else None,
        )
    except BaseException:
        connected.close()
        raise
    secured = transport.get_extra_info("ssl_object")
    if secured is not None and secured.selected_alpn_protocol() not in {"h2", None}:
        transport.abort()
        raise ConnectionError(f"{target.url} speaks {secured.selected_alpn_protocol()}, not HTTP/2")
    return connection


async def _tunnel(connected: socket.socket, target: Target, proxy: SplitResult) -> None:
    """Ask a proxy for a tunnel, and read its answer but no byte beyond."""
    loop = asyncio.get_running_loop()
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [f"CONNECT {host}:{target.port} HTTP/1.1", f"Host: {host}:{target.port}"]
    if proxy.username:
        secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
        lines.append("Proxy-Authorization: Basic " + base64.b64encode(secret).decode())
    await loop.sock_sendall(connected, "\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        byte = await loop.sock_recv(connected, 1)
        answer += byte
        if not byte or len(answer) > MAX_PROXY_ANSWER:
            raise ConnectionError("the proxy hung up instead of making a tunnel")
    status = answer.split(b"\r\n", 1)[0].decode("latin-1")
    if not status.startswith("HTTP/1.") or status.split(" ")[1:2] != ["200"]:
        raise ConnectionError(f"the proxy made no tunnel: {status[:100]}")
