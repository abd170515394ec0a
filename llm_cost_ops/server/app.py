"""Runs listeners in a process: they bind, and drain when the process is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import uvicorn

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.server.h11_limits import limited_protocol
from llm_cost_ops.server.limits import ConnectionLimits

__all__ = [
    "HttpServer",
    "Server",
    "ServerTls",
    "private_sockets",
    "remove_socket",
    "remove_stale_socket",
    "serve",
    "tcp_listener",
]


_log = logging.getLogger("llm_cost_ops.server")

# asyncio takes as many connections in a row as may wait, before anything else goes on, and tries as often
# where it can take none.
_TAKEN_AT_ONCE = 64
_MAY_WAIT = 2048

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BETWEEN_LINES = 60.0  # seconds

AsgiApplication = Callable[[Any, Any, Any], Awaitable[None]]


class Server(Protocol):
    """One listener of the service. `serve` runs any number of them in one process."""

    async def start(self) -> str:
        """Bind and accept; the address really bound, such as "http://127.0.0.1:8080"."""

    async def stop(self, grace: float) -> None:
        """Accept no more; let calls in flight finish, for at most `grace` seconds."""

    def reload_certificates(self) -> None:
        """Use the certificate that is in the files now, for connections that come."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: `serve` handles signals, for all servers of the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """An ASGI app on uvicorn, with limits of our own on what a connection may take.

    It listens on `host` and `port`, loopback unless told otherwise; port 0 takes a free one. With
    `uds` it listens on that Unix socket instead, which only the process's user may open. With `tls` it
    speaks HTTPS, but not on a Unix socket.
    """

    def __init__(
        self,
        app: AsgiApplication,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        uds: str | None = None,
        limits: ConnectionLimits | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._uds = uds
        self._tls = tls = tls if uds is None else None
        limits = limits or ConnectionLimits()
        self._config = uvicorn.Config(
            app,
            http=limited_protocol(limits),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_TAKEN_AT_ONCE,
            timeout_keep_alive=max(1, round(limits.idle_timeout)),
            h11_max_incomplete_event_size=limits.max_header_bytes,
            **({} if tls is None else _tls_settings(tls)),
        )
        self._server = _Uvicorn(self._config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Bind and accept; the address really bound. Raises OSError when that can't be."""
        listener = _unix(self._uds) if self._uds is not None else tcp_listener(self._host, self._port)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError("the server ended before it started")
            await asyncio.sleep(0.005)
        listener.listen(_MAY_WAIT)
        if self._uds is not None:
            return f"unix:{self._uds}"
        host, port = listener.getsockname()[:2]
        scheme = "http"
        if self._tls is not None:
            scheme, host = "https", self._host  # as it stands in the certificate
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def stop(self, grace: float) -> None:
        """Accept no more; let calls in flight finish, for at most `grace` seconds."""
        if self._task is None:
            return
        self._config.timeout_graceful_shutdown = max(1, round(grace))
        self._server.should_exit = True
        await self._task
        if self._uds is not None:
            remove_socket(self._uds)

    def reload_certificates(self) -> None:
        """Use the certificate that is in the files now, for connections that come."""
        if self._tls is not None and self._config.ssl is not None:
            self._config.ssl.load_cert_chain(self._tls.cert_file, self._tls.key_file)


def _tls_settings(tls: ServerTls) -> dict[str, Any]:
    asked = ssl.CERT_NONE if tls.client_ca_file is None else ssl.CERT_REQUIRED
    return {
        "ssl_certfile": tls.cert_file,
        "ssl_keyfile": tls.key_file,
        "ssl_ca_certs": tls.client_ca_file,
        "ssl_cert_reqs": asked,
    }


def tcp_listener(host: str, port: int) -> socket.socket:
    """A socket bound to an address. OSError, with the address as its filename, when that can't be."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return _bound(host, port)
    except OSError as error:
        raise OSError(error.errno, f"can't listen there: {error.strerror or error}", shown) from None


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove_stale_socket(path)
        with private_sockets():
            listener.bind(path)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"can't listen there: {error.strerror or error}", path) from None
    return listener


async def serve(
    servers: Sequence[Server],
    *,
    on_drain: Callable[[], object] | None = None,
    close: Callable[[], Awaitable[None]] | None = None,
    announce: Callable[[str], object] = print,
    drain_delay: float = 0.5,
    grace: float = 30.0,
    stopped: asyncio.Event | None = None,
    reload: Callable[[], object] | None = None,
) -> None:
    """Run servers until SIGTERM or SIGINT, or until `stopped` is set.

    `announce` is told the address of each once it accepts. To stop, `on_drain` is called first, for
    readiness to say so; after `drain_delay` seconds the servers accept no more, calls in flight get
    `grace` seconds, and `close` is awaited last. `reload` is called on SIGHUP.
    A second signal to stop ends the delay and the grace.
    The process may have as many open files from then on as its hard limit lets it.
    """
    _allow_files()
    stop, hurry = stopped or asyncio.Event(), asyncio.Event()
    started: list[Server] = []
    handlers: dict[signal.Signals, Callable[[], object]] = dict.fromkeys(
        (signal.SIGTERM, signal.SIGINT), lambda: hurry.set() if stop.is_set() else stop.set()
    )
    if reload is not None:
        # Without one, SIGHUP keeps its usual effect: the end of a terminal ends the server.
        handlers[signal.SIGHUP] = reload
    with _signals(handlers), _few_lines():
        try:
            for server in servers:
                address = await server.start()
                started.append(server)
                announce(f"listening on {address}")
            await stop.wait()
            if on_drain is not None:
                on_drain()
            await _unless(hurry, asyncio.sleep(drain_delay))
        finally:
            await _unless(hurry, asyncio.gather(*(server.stop(grace) for server in started)))
            if close is not None:
                await close()


async def _unless(event: asyncio.Event, work: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(work), asyncio.create_task(event.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


@contextlib.contextmanager
def _signals(handlers: dict[signal.Signals, Callable[[], object]]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    watched = []
    for number, handle in handlers.items():
        # Not in the main thread, as in tests: then whoever runs it sets `stopped`.
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(number, handle)
            watched.append(number)
    try:
        yield
    finally:
        for number in watched:
            loop.remove_signal_handler(number)


def _allow_files() -> None:
    """Every connection is an open file, and the usual limit, 1024, is there for programs that call select."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a system may have a limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def _few_lines() -> Iterator[None]:
    """While it is open, that connections can't be taken is a line a minute.

    asyncio logs a traceback for each that it tries to take, and tries again each second.
    """
    loop = asyncio.get_running_loop()
    said = float("-inf")

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said
        error = context.get("exception")
        if "socket" not in context or not isinstance(error, OSError) or error.errno not in _NO_ROOM:
            loop.default_exception_handler(context)
        elif loop.time() - said >= _BETWEEN_LINES:
            said = loop.time()
            _log.error("connections are not taken until others end: %s", error.strerror)

    before = loop.get_exception_handler()
    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)


class ServerTls(msgspec.Struct, frozen=True, kw_only=True):
    """Paths of PEM files: a certificate with its chain, and its key without a password.

    With `client_ca_file` only clients with a certificate of one of its authorities are let in. The files are
    read at the start, and by `reload_certificates`. Raises ConfigurationError, with the option of `serve` as
    its parameter, when one can't be read or they do not belong together.
    """

    cert_file: str
    key_file: str
    client_ca_file: str | None = None

    def __post_init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Asked for a password, OpenSSL would ask the terminal.
            context.load_cert_chain(self.cert_file, self.key_file, lambda: "")
        except (OSError, ValueError) as error:
            raise _unreadable("tls-cert", f"{self.cert_file} and {self.key_file}", error) from None
        if self.client_ca_file is None:
            return
        try:
            context.load_verify_locations(self.client_ca_file)
        except (OSError, ValueError) as error:
            raise _unreadable("tls-client-ca", self.client_ca_file, error) from None


def _unreadable(option: str, files: str, error: Exception) -> ConfigurationError:
    reason = "no such file" if isinstance(error, FileNotFoundError) else error
    return ConfigurationError(f"--{option}: {files} can't be used: {reason}", parameter=option)


@contextlib.contextmanager
def private_sockets() -> Iterator[None]:
    """While it is open, Unix sockets are bound so that only the process's user can connect."""
    mask = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(mask)


def remove_socket(path: str) -> None:
    """Remove the socket, if it is still there."""
    Path(path).unlink(missing_ok=True)


def remove_stale_socket(path: str) -> bool:
    """Remove the socket that a stopped server left. False when anything else is at the path."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return False
    except FileNotFoundError:
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            remove_socket(path)
            return True
    return False
