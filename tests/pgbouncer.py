"""pgbouncer in transaction mode in front of a PostgreSQL server of the tests."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from tests.postgres_server import PostgresServer, end_with_parent, system_user

__all__ = ["pgbouncer"]

_CONFIG = """
[databases]
* = host={server.folder} port={server.port} user=postgres
[pgbouncer]
listen_addr = {address}
unix_socket_dir = {folder}
listen_port = {port}
auth_type = any
pool_mode = transaction
default_pool_size = 2
server_reset_query =
logfile = {folder}/log
{more}
"""


@contextmanager
def pgbouncer(
    server: PostgresServer, *, port: int = 6432, address: str = "", more: str = ""
) -> Iterator[Path]:
    """A pgbouncer with two connections to each database; the folder of its socket.

    A test that asks for it skips where pgbouncer is not installed.
    """
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("pgbouncer is not installed (Debian: apt install pgbouncer)")
    folder = Path(tempfile.mkdtemp(prefix="llm-cost-ops-pgb-"))
    config = _CONFIG.format(server=server, folder=folder, port=port, address=address, more=more)
    try:
        (folder / "pgbouncer.ini").write_text(config)
        if system_user() is not None:
            shutil.chown(folder, system_user())
        process = subprocess.Popen(
            [program, "-q", str(folder / "pgbouncer.ini")],
            cwd="/",
            user=system_user(),
            preexec_fn=end_with_parent,  # noqa: PLW1509 - it takes no lock
        )
        try:
            _wait_for(process, folder, port)
            yield folder
        finally:
            process.terminate()
            process.wait(10)
    finally:
        shutil.rmtree(folder)


def _wait_for(process: subprocess.Popen[bytes], folder: Path, port: int) -> None:
    until = time.monotonic() + 60
    while True:
        with suppress(psycopg.OperationalError):
            psycopg.connect(host=str(folder), port=port, user="postgres", dbname="postgres").close()
            return
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
