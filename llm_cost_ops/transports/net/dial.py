"""From a host's name to a connected socket: the one resolver, and the one way to connect in asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from llm_cost_ops.rpc.threads import started

__all__ = ["NEXT_ADDRESS", "Address", "connect", "connect_any", "is_address", "look_up", "resolve"]

# The next address is tried beside one that has not answered for so many seconds.
NEXT_ADDRESS = 0.25

Address = tuple[socket.AddressFamily, Any]
"""A family, and an address as sockets of it take them."""


def is_address(host: str) -> bool:
    """Whether a host is named by its address, so that there is nothing to resolve."""
    return _literal(host, 0) is not None


def look_up(host: str, port: int) -> list[Address]:
    """A host's addresses, IPv4 and IPv6 in turn. Blocks as long as the resolver takes; raises OSError."""
    literal = _literal(host, port)
    if literal is not None:
        return [literal]
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise ConnectionError(f"can't resolve {host}: {error}") from error
    addresses: list[Address] = list(dict.fromkeys((info[0], info[4]) for info in infos))
    first = [address for address in addresses if address[0] == addresses[0][0]]
    second = [address for address in addresses if address[0] != addresses[0][0]]
    mixed = [one for pair in zip(first, second, strict=False) for one in pair]
    return mixed + first[len(second) :] + second[len(first) :]


async def resolve(host: str, port: int) -> list[Address]:
    """As `look_up`. A resolver can't be interrupted: it is left behind in its thread when nobody waits.

    Where no thread can be started it blocks the event loop.
    """
    literal = _literal(host, port)
    if literal is not None:
        return [literal]
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Address]] = loop.create_future()

    def finish(addresses: list[Address], error: OSError | None) -> None:
        if found.done():
            return
        if error is not None:
            found.set_exception(error)
        else:
            found.set_result(addresses)

    def run() -> None:
        addresses: list[Address] = []
        failed: OSError | None = None
        try:
            addresses = look_up(host, port)
        except OSError as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop may be gone by now
            loop.call_soon_threadsafe(finish, addresses, failed)

    # A thread of the loop's pool would hold up the end of the process.
    if started(run, "llm-cost-ops-resolver") is None:
        return look_up(host, port)
    return await found


async def connect(
    address: Address, *, local: str | None = None, options: Iterable[Any] = ()
) -> socket.socket:
    """A socket connected to an address, with options of `setsockopt` and a local address to bind to."""
    family, where = address
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if family != socket.AF_UNIX:
            # asyncio does so only where the protocol is named. What is sent may not wait until what was
            # sent before is acknowledged: HTTP's head and body are two writes.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in options:
            made.setsockopt(*option)
        if local is not None:
            made.bind((local, 0))
        await asyncio.get_running_loop().sock_connect(made, where)
    except BaseException:
        made.close()
        raise
    return made


async def connect_any(
    host: str, port: int, *, local: str | None = None, options: Iterable[Any] = ()
) -> socket.socket:
    """Connect to whichever address of a host answers first; each gets a moment before the next is tried."""
    options = list(options)
    waiting = await resolve(host, port)
    trying: set[asyncio.Task[socket.socket]] = set()
    failed: OSError = ConnectionError(f"{host} has no address")
    try:
        while waiting or trying:
            if waiting:
                trying.add(asyncio.create_task(connect(waiting.pop(0), local=local, options=options)))
            done, trying = await asyncio.wait(
                trying, timeout=NEXT_ADDRESS if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    trying |= done - {task}
                    return task.result()
                failed = error if isinstance(error, OSError) else ConnectionError(str(error))
        raise failed
    finally:
        _drop(trying)


def _drop(tasks: set[asyncio.Task[socket.socket]]) -> None:
    def close(task: asyncio.Task[socket.socket]) -> None:
        if not task.cancelled() and task.exception() is None:
            task.result().close()

    for task in tasks:
        task.cancel()
        task.add_done_callback(close)


def _literal(host: str, port: int) -> Address | None:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    return (socket.AF_INET if version == 4 else socket.AF_INET6), (host, port)
