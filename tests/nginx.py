"""nginx in front of servers, in the tests of what stands behind it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import MAX_WAIT

__all__ = ["nginx", "unused_port"]

_CONFIG = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
{servers}
}}
"""
_HTTP = """
    upstream http_costs {{ {upstreams} keepalive 32; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://http_costs; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_request_buffering off; proxy_buffering off;
        }}
    }}
"""
_GRPC = """
    upstream grpc_costs {{ {upstreams} keepalive 32; }}
    server {{ listen 127.0.0.1:{port} http2; {limits} location / {{ grpc_pass grpc://grpc_costs; }} }}
"""
# docs/reliability.md shows them.
_LIMIT_ZONES = """
    limit_conn_zone $binary_remote_addr zone=connections:1m;
    limit_req_zone $binary_remote_addr zone=requests:1m rate=500r/s;
"""
_LIMITS = "limit_conn connections 20; limit_req zone=requests burst=1000 nodelay;"


def unused_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def nginx(
    folder: Path, *, http: Sequence[str] = (), grpc: Sequence[str] = (), limits: bool = False
) -> Iterator[dict[str, str]]:
    """An nginx that sends each call to the next of these addresses; its own URLs by scheme.

    With `limits` each peer has so many connections, and requests a second, over gRPC.
    A test that asks for it skips where nginx is not installed.
    """
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("nginx is not installed (Debian: apt install nginx-light)")
    urls, servers = {}, _LIMIT_ZONES if limits else ""
    for scheme, form, addresses in (("http", _HTTP, http), ("grpc", _GRPC, grpc)):
        if addresses:
            port = unused_port()
            upstreams = " ".join(f"server {address};" for address in addresses)
            servers += form.format(upstreams=upstreams, port=port, limits=_LIMITS if limits else "")
            urls[scheme] = f"{scheme}://127.0.0.1:{port}"
    (folder / "nginx.conf").write_text(_CONFIG.format(folder=folder, servers=servers))
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        for url in urls.values():
            _wait_for(process, int(url.rpartition(":")[2]))
        yield urls
    finally:
        process.terminate()
        process.wait(MAX_WAIT)


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
