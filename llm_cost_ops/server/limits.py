"""What the listeners take: bytes, calls and seconds."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["AsgiLimits", "ConnectionLimits", "GrpcLimits"]

_MIB = 1024 * 1024

# Calls that grpcio takes in at a time, as a multiple of those that are served.
BACKLOG = 4


class AsgiLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the app takes: bytes of a body (also after decompression) and of headers, and seconds.

    `max_body_bytes` is for a batch; any other body, a record of a batch and a line of a stream may have
    `max_message_bytes`, and all lines of a stream `max_stream_bytes`. `body_timeout` is for the whole body,
    `call_timeout` for the call itself, where the client sets no deadline or a later one; a stream has
    `stream_timeout` in place of both.
    """

    max_body_bytes: int = 16 * _MIB
    max_message_bytes: int = _MIB // 4
    max_stream_bytes: int = 4096 * _MIB
    max_header_bytes: int = 32 * 1024
    body_timeout: float = 30.0
    call_timeout: float = 60.0
    stream_timeout: float = 3600.0


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that an HTTP connection may take, and its bytes.

    `header_timeout` runs from the connect, or from the first byte of a later request, to the end of
    the headers; `idle_timeout` between requests; `linger_timeout` while a client goes on sending a
    body that was answered already; `write_timeout` while a client does not read.
    """

    header_timeout: float = 10.0
    idle_timeout: float = 30.0
    linger_timeout: float = 2.0
    write_timeout: float = 30.0
    max_header_bytes: int = 32 * 1024


class GrpcLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the gRPC server takes and sends: bytes of messages (also after decompression), calls, seconds.

    `max_receive_bytes` is for a batch; any other message, and a record of a batch, may have
    `max_message_bytes`, and all messages of a stream `max_stream_bytes`. More than `max_concurrent_calls`
    at a time are refused, with a hint when to come again. `call_timeout` is for a call whose client sets no
    deadline or a later one, `stream_timeout` for one with a stream. Clients may ping every
    `min_ping_interval` seconds; the server pings a silent connection after `keepalive_time` and closes it
    when no answer comes within `keepalive_timeout`.
    """

    max_receive_bytes: int = 16 * _MIB
    max_message_bytes: int = _MIB // 4
    max_stream_bytes: int = 4096 * _MIB
    max_send_bytes: int = 64 * _MIB
    max_metadata_bytes: int = 32 * 1024
    max_concurrent_calls: int = 1000
    call_timeout: float = 60.0
    stream_timeout: float = 3600.0
    min_ping_interval: float = 10.0
    keepalive_time: float = 120.0
    keepalive_timeout: float = 20.0

    def options(self) -> list[tuple[str, Any]]:
        """The same in grpcio's words."""
        return [
            # Over our own limit a request gets an answer that names it; over this, grpcio cuts it off.
            ("grpc.max_receive_message_length", 2 * self.max_receive_bytes),
            ("grpc.max_send_message_length", self.max_send_bytes),
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.keepalive_time_ms", round(self.keepalive_time * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive_timeout * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", round(self.min_ping_interval * 1000)),
            # Each reset of a stream is answered with a ping, and a connection with many that were not taken
            # back is read no further: that slows a flood of opened and reset streams down to what others
            # do not notice. Together with a limit on streams it has no effect: what is over that limit is
            # refused before its reset counts.
            ("grpc.http2.ping_on_rst_stream_percent", 100),
            # A level heeds what the client accepts; an algorithm (`compression=`) does not.
            ("grpc.default_compression_level", 1),
            # Two servers on one port would share its connections at random.
            ("grpc.so_reuseport", 0),
        ]
