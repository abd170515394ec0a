"""What to do where a connection fails since the URL, or the trust, is not the server's."""

from __future__ import annotations

__all__ = ["SILENT", "advice"]

# How a gRPC connection ends to which a server said nothing.
SILENT = "the connection was lost before the server said anything"

_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
_NO_AUTHORITY = (
    "self-signed certificate",
    "self signed certificate",
    "unable to get local issuer certificate",
)
# By the scheme in use, what OpenSSL, h11 or the gRPC transport say of such a server, and its URL.
_SCHEMES = (
    ("https", _NO_TLS, "if it speaks no TLS, its URL begins with http://"),
    ("grpcs", _NO_TLS, "if it speaks no TLS, its URL begins with grpc://"),
    ("http", ("Server disconnected without",), "if it speaks TLS, its URL begins with https://"),
    ("grpc", (SILENT,), "if it speaks TLS, its URL begins with grpcs://"),
    (
        "http",
        ("illegal request line", "illegal status line"),
        "if it is a gRPC server, its URL begins with grpc://",
    ),
    ("grpc", ("does not speak HTTP/2",), "if it is an HTTP server, its URL begins with http://"),
    ("grpcs", ("does not speak HTTP/2",), "if it is an HTTP server, its URL begins with https://"),
)


def advice(scheme: str, reason: str) -> str:
    """The end of an error's message: what to try after a failure for `reason`; empty where none is known."""
    if any(words in reason for words in _NO_AUTHORITY):
        return "; trust who signed it by TLSConfig(ca_file=...) or SSL_CERT_FILE"
    for used, said, advised in _SCHEMES:
        if used == scheme and any(words in reason for words in said):
            return f"; {advised}"
    return ""
