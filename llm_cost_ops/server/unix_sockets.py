"""Unix sockets of a server: only its user may open them, and a dead server's are no obstacle."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["private_sockets", "remove_socket", "remove_stale_socket"]


@contextlib.contextmanager
def private_sockets() -> Iterator[None]:
    """Sockets that are bound meanwhile belong to the process's user alone."""
    mask = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(mask)


def remove_socket(path: str) -> None:
    """Remove the socket, if it is still there."""
    Path(path).unlink(missing_ok=True)


def remove_stale_socket(path: str) -> bool:
    """Remove the socket of a server that is gone. False when the path is taken by anything else."""
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
