"""Headers: what of them is metadata, and the ones that mean something to the machinery."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable
from email.utils import parsedate_to_datetime

from llm_cost_ops.rpc.context import Metadata

__all__ = [
    "DEADLINE_HEADER",
    "IDEMPOTENCY_HEADER",
    "REQUEST_ID_HEADER",
    "STATUS_HEADER",
    "decode_timeout",
    "encode_timeout",
    "from_headers",
    "is_request_id",
    "retry_after",
    "to_headers",
]

# The name and the form that gRPC has, and that gateways from HTTP to gRPC read.
DEADLINE_HEADER = "grpc-timeout"
IDEMPOTENCY_HEADER = "idempotency-key"
REQUEST_ID_HEADER = "x-request-id"
# Over gRPC: the HTTP status of a success, where it is not the method's ordinary one. grpc-gateway's name.
STATUS_HEADER = "x-http-code"

MAX_RETRY_AFTER = 24 * 3600.0

# Of one connection, of the body, or of the transport: never copied to or from metadata.
_NOT_METADATA = frozenset(
    (
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        DEADLINE_HEADER,
    )
)

_UNITS = (("n", 1e-9), ("u", 1e-6), ("m", 1e-3), ("S", 1.0), ("M", 60.0), ("H", 3600.0))
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_SECONDS = re.compile(r"[ \t]*[0-9]{1,15}(\.[0-9]{0,9})?[ \t]*")


def encode_timeout(seconds: float) -> str:
    """Seconds in gRPC's form: up to eight digits and a unit, rounded down."""
    for unit, size in _UNITS:
        if seconds < 1e8 * size:
            return f"{max(0, math.floor(seconds / size))}{unit}"
    return "99999999H"


def decode_timeout(text: str) -> float | None:
    """Seconds from gRPC's form; None when it is not of that form."""
    match = _TIMEOUT.fullmatch(text.strip())
    return int(match[1]) * dict(_UNITS)[match[2]] if match else None


def is_request_id(text: str) -> bool:
    """Whether a peer's request id may be repeated in logs and answers."""
    return _REQUEST_ID.fullmatch(text) is not None


def to_headers(metadata: Metadata) -> list[tuple[str, str]]:
    """Metadata as headers; bytes become base64 without padding."""
    headers = []
    for name, value in metadata:
        if name in _NOT_METADATA:
            continue
        text = value if isinstance(value, str) else base64.b64encode(value).decode().rstrip("=")
        headers.append((name, text))
    return headers


def from_headers(headers: Iterable[tuple[bytes, bytes]], *, strict: bool = False) -> Metadata:
    """The metadata in a peer's headers.

    What metadata can't hold is left out: names and values of other characters, and all that is
    over its limits. With `strict` it raises ValueError instead.
    """
    metadata = Metadata()
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").lower()
        if name in _NOT_METADATA:
            continue
        text = raw_value.decode("latin-1")
        try:
            if name.endswith("-bin"):
                for part in text.split(","):
                    metadata.add(name, _from_base64(part.strip()))
            else:
                metadata.add(name, text.strip())
        except ValueError:
            if strict:
                raise
    return metadata


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("metadata whose key ends in '-bin' needs base64") from None


def retry_after(text: str, now: float) -> float | None:
    """Seconds to wait, from a Retry-After header in seconds or as an HTTP date; at most a day.

    `now` is in seconds since 1970. None when it says nothing that can be understood.
    """
    if not text:
        return None
    if _SECONDS.fullmatch(text):
        return min(float(text), MAX_RETRY_AFTER)
    if len(text) > 64:
        return None
    try:
        moment = parsedate_to_datetime(text.strip()).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return min(max(0.0, moment - now), MAX_RETRY_AFTER)
