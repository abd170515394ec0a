"""A TLS front for a plain server, and an HTTP proxy that tunnels, both on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from tests.waiting import MAX_WAIT

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


def self_signed(folder: Path, subject: str = "localhost", name: str = "") -> tuple[Path, Path]:
    """The paths of a certificate and of its key: cert.pem and key.pem, or NAME.pem and NAME.key."""
    cert, key = folder / f"{name or 'cert'}.pem", folder / (f"{name}.key" if name else "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += f" -subj /CN={subject} -addext subjectAltName=DNS:{subject} -keyout {key} -out {cert}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return cert, key


def mutual_certificates(folder: Path) -> Path:
    """A folder with a certificate of a server, localhost, and one of a client, each its own authority."""
    self_signed(folder, "localhost", "server")
    self_signed(folder, "someone", "client")
    return folder


async def _pipe(reader: Reader, writer: Writer) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _join(reader: Reader, writer: Writer, port: int) -> None:
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        # Cancelled by `close`; a server's connection callback must not end so.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(_pipe(reader, there_writer), _pipe(there_reader, writer))
    finally:
        there_writer.close()
        writer.close()


class Tunnels:
    """Runs in a thread. `asked` holds the head of each request that the proxy got."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answer = b"HTTP/1.1 200 Connection established\r\n\r\n"
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.proxy_port = self._listen(self._proxy, None)

    def tls_front(self, port: int, context: ssl.SSLContext) -> int:
        """A port that speaks TLS, before one that does not."""

        async def join(reader: Reader, writer: Writer) -> None:
            await _join(reader, writer, port)

        return self._listen(join, context)

    def _listen(
        self, serve: Callable[[Reader, Writer], Awaitable[None]], context: ssl.SSLContext | None
    ) -> int:
        starting = asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(MAX_WAIT)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _proxy(self, reader: Reader, writer: Writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head)
        writer.write(self.answer)
        if b" 200 " not in self.answer:
            writer.close()
            return
        _, port = head.split(b" ", 2)[1].rsplit(b":", 1)
        # Whatever the name, it is this machine: only the proxy need know.
        await _join(reader, writer, int(port))

    def close(self) -> None:
        async def end() -> None:
            for server in self._servers:
                server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0.05)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(MAX_WAIT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(MAX_WAIT)
        self._loop.close()


@contextlib.contextmanager
def tunnels() -> Iterator[Tunnels]:
    made = Tunnels()
    try:
        yield made
    finally:
        made.close()
