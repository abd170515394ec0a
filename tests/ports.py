"""Ports on loopback for servers that are started later, and for those that are not there."""

from __future__ import annotations

import random
import socket

__all__ = ["free_port"]


def free_port() -> int:
    """A port on which nobody listens now, nor by accident later.

    It is none of those that the system gives to connections, and to servers that ask for any: those could
    take the port of a server that is being restarted, or of one that is said to be away.
    """
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(12_000, 30_000)
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
