"""What does the recording proxy add to a call, and how many does it pass on, beside bare pass-throughs?

A provider that answers at once, the proxy (`llm-cost-ops proxy`, embedded ledger, spool), and two proxies of
a few lines that pass bytes through and record nothing: aiohttp's server and client, and uvicorn with httpx.
Each is a process of its own. One caller's calls are timed for the latency; then 8 connections call for some
seconds. "by CPU" relates calls to the time that the process computed: what one core of its own would do.
Rounds take turns, so that what else runs on the machine meets all of them; the best round of each counts.
Targets: p50 at most 1.5 ms above a direct call, at least 500 calls per second.
Run: python benchmarks/bench_proxy.py [--seconds 3] [--rounds 3] [--connections 8]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import quantiles
from typing import Any, NamedTuple

BODY = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "word " * 400}]}).encode()
STREAM = BODY[:-1] + b', "stream": true, "stream_options": {"include_usage": true}}'
CHUNKS = 50
USAGE = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}


class Provider(asyncio.Protocol):
    """Answers as soon as a request is there; every answer has an id of its own."""

    number = 0

    def __init__(self) -> None:
        self.data = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, rest = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(rest) < length:
            return
        self.data = b""
        Provider.number += 1
        made = {"id": f"chatcmpl-{Provider.number:024d}", "model": "gpt-4o", "created": 1_760_000_000}
        if b'"stream": true' in rest[-100:]:
            self.go_on(_stream(made))
            return
        message = {"role": "assistant", "content": "word " * 50}
        answer = {**made, "object": "chat.completion", "choices": [{"message": message}], "usage": USAGE}
        body = json.dumps(answer).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % len(body) + body)

    def go_on(self, parts: Iterator[bytes]) -> None:
        """Send a part, and the next one a bit later: they arrive one by one."""
        part = next(parts, None)
        if part is not None:
            self.transport.write(part)
            asyncio.get_running_loop().call_soon(self.go_on, parts)


def _stream(made: dict[str, Any]) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    head = {**made, "object": "chat.completion.chunk"}
    parts = [{**head, "choices": [{"index": 0, "delta": {"content": "word "}}]}] * CHUNKS
    parts.append({**head, "choices": [], "usage": USAGE})
    for part in [*map(json.dumps, parts), "[DONE]"]:
        data = f"data: {part}\n\n".encode()
        yield b"%x\r\n%s\r\n" % (len(data), data)
    yield b"0\r\n\r\n"


async def serve_provider() -> None:
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", 0)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def serve_aiohttp(upstream: str) -> None:
    import aiohttp
    from aiohttp import web

    session = aiohttp.ClientSession(auto_decompress=False)

    async def pass_on(request: web.Request) -> web.StreamResponse:
        kept = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        body = await request.read()
        async with session.request(
            request.method, upstream + request.path_qs, headers=kept, data=body
        ) as answer:
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() != "transfer-encoding":
                    response.headers[name] = value
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", pass_on)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


async def serve_httpx(upstream: str) -> None:
    import httpx
    import uvicorn

    session = httpx.AsyncClient(timeout=60)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        kept = [pair for pair in scope["headers"] if pair[0] != b"host"]
        request = session.build_request(scope["method"], upstream + scope["path"], headers=kept, content=body)
        answer = await session.send(request, stream=True)
        dropped = b"transfer-encoding"
        headers = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() != dropped]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        async for data in answer.aiter_raw():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await answer.aclose()
        await send({"type": "http.response.body", "body": b""})

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print(f"listening on http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}", flush=True)

    config = uvicorn.Config(app, port=0, http="h11", lifespan="off", log_config=None, access_log=False)
    await Server(config).serve()


RIVALS: dict[str, Callable[[str], Any]] = {"aiohttp": serve_aiohttp, "httpx": serve_httpx}


class Place(NamedTuple):
    port: int
    path: str
    pid: int


@contextmanager
def running(command: list[str], prefix: str = "") -> Iterator[Place]:
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = ""
        while "listening on" not in line:
            line = process.stdout.readline()
            assert line, command
        port = int(line.split()[-1].rpartition(":")[2])
        yield Place(port, f"{prefix}/v1/chat/completions", process.pid)
    finally:
        process.terminate()
        process.wait(30)


class Caller:
    """One connection, kept alive."""

    def __init__(self, place: Place, body: bytes) -> None:
        self._place = place
        head = f"POST {place.path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-1\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._place.port)

    async def call(self) -> float:
        began = time.perf_counter()
        self._writer.write(self._request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        if b"chunked" in head:
            await self._reader.readuntil(b"\r\n0\r\n\r\n")
        else:
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            await self._reader.readexactly(length)
        return time.perf_counter() - began

    def close(self) -> None:
        self._writer.close()


async def latency(place: Place, body: bytes, calls: int) -> tuple[float, float]:
    """The p50 and the p99 of one caller's calls, in ms."""
    caller = Caller(place, body)
    await caller.open()
    for _ in range(20):
        await caller.call()
    found = quantiles([await caller.call() * 1000 for _ in range(calls)], n=100)
    caller.close()
    return found[49], found[98]


async def throughput(place: Place, body: bytes, seconds: float, connections: int) -> tuple[float, float]:
    """Calls per second, and per second of the process's CPU time."""
    callers = [Caller(place, body) for _ in range(connections)]
    for caller in callers:
        await caller.open()
    until, before, began = time.perf_counter() + seconds, cpu_of(place.pid), time.perf_counter()

    async def work(caller: Caller) -> int:
        done = 0
        while time.perf_counter() < until:
            await caller.call()
            done += 1
        return done

    done = sum(await asyncio.gather(*map(work, callers)))
    took, computed = time.perf_counter() - began, cpu_of(place.pid) - before
    for caller in callers:
        caller.close()
    return done / took, done / max(computed, 0.01)


def cpu_of(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(places: dict[str, Place], body: bytes, options: argparse.Namespace, chunks: int = 0) -> None:
    slowest: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
    for _ in range(options.rounds):
        for name, place in places.items():
            slowest[name].append(asyncio.run(latency(place, body, options.calls)))
            rates[name].append(asyncio.run(throughput(place, body, options.seconds, options.connections)))
    direct = min(p50 for p50, _ in slowest["direct"])
    print(
        f"{'':22}{'p50 ms':>8}{'added':>8}{'p99 ms':>8}{'calls/s':>10}{'by CPU':>10}"
        + (f"{'us/chunk':>10}" if chunks else "")
    )
    for name in places:
        p50, p99 = (min(values) for values in zip(*slowest[name], strict=True))
        rate, by_cpu = (max(values) for values in zip(*rates[name], strict=True))
        each = f"{(p50 - direct) * 1000 / chunks:10.0f}" if chunks else ""
        print(f"{name:22}{p50:8.2f}{p50 - direct:8.2f}{p99:8.2f}{rate:10,.0f}{by_cpu:10,.0f}{each}")


def main() -> None:
    """Print a table for whole answers, and one for streams."""
    if sys.argv[1:2] == ["provider"]:
        asyncio.run(serve_provider())
        return
    if sys.argv[1:2] and sys.argv[1] in RIVALS:
        asyncio.run(RIVALS[sys.argv[1]](sys.argv[2]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--calls", type=int, default=300)
    options = parser.parse_args()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        places = {"direct": stack.enter_context(running([__file__, "provider"]))}
        upstream = f"http://127.0.0.1:{places['direct'].port}"
        command = [
            "-m",
            "llm_cost_ops.cli",
            "proxy",
            "--upstream",
            f"openai={upstream}",
            "--http",
            "127.0.0.1:0",
        ]
        ledger = ["--db", f"{folder}/costs.db", "--spool", f"{folder}/spool", "--organization", "acme"]
        places["llm-cost-ops proxy"] = stack.enter_context(running(command + ledger, "/openai"))
        for name in RIVALS:
            places[f"{name}, bare"] = stack.enter_context(running([__file__, name, upstream]))
        print("whole answers")
        measure(places, BODY, options)
        print(f"streams of {CHUNKS} chunks")
        measure(places, STREAM, options, CHUNKS)


if __name__ == "__main__":
    main()
