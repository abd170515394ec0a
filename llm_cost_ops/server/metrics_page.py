"""Who may read /metrics, and its answer over HTTP."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from llm_cost_ops._gen.methods import GET_HEALTH
from llm_cost_ops.rpc.context import CallContext, Metadata, uuid7
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.server.calls import Receive, Scope, Send
from llm_cost_ops.server.metrics import Metrics
from llm_cost_ops.service.access.authentication import Authentication
from llm_cost_ops.service.access.tenancy import Role
from llm_cost_ops.service.failures import log_failure
from llm_cost_ops.transports.http.errors import error_to_response

__all__ = ["MetricsPage"]

_FORMAT = b"text/plain; version=0.0.4; charset=utf-8"
_TIMEOUT = 5.0
# A proxy on this machine connects from loopback for whoever called it.
_FORWARDED = frozenset((b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"))


class MetricsPage:
    """`/metrics`. From loopback or over a Unix socket no key is needed, where nothing says that a proxy
    passed the request on; a page of another site can't read it there, since `Host` has to be loopback too.
    Anybody else shows a key with the role metrics, or that of an admin of all organizations: the figures are
    those of all of them.
    """

    def __init__(self, metrics: Metrics, keys: Authentication) -> None:
        self._metrics = metrics
        self._keys = keys

    def serves(self, scope: Scope) -> bool:
        """Whether a request is for it."""
        path: str = scope["path"]
        return path.removeprefix(scope.get("root_path", "")) == "/metrics"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        verb = scope["method"]
        headers: list[tuple[bytes, bytes]] = [(b"cache-control", b"no-store")]
        try:
            if verb not in ("GET", "HEAD"):
                headers.append((b"allow", b"GET, HEAD"))
                raise RpcError(StatusCode.UNIMPLEMENTED, f"{verb[:20]} is not allowed here", http_status=405)
            if not _is_local(scope):
                await self._check_key(scope)
            status, kind, body = 200, _FORMAT, await self._metrics.text()
        except RpcError as error:
            request_id = uuid7()
            log_failure(error, request_id)
            status, _, body = error_to_response(error, request_id)
            kind = b"application/json"
        headers += [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if verb == "HEAD" else body})

    async def _check_key(self, scope: Scope) -> None:
        runtime, metadata = AsyncRuntime(), Metadata()
        for name, value in scope["headers"]:
            if name.lower() == b"authorization":
                metadata.add("authorization", value.decode("latin-1"))
        context = CallContext(GET_HEALTH, runtime, metadata, runtime.monotonic() + _TIMEOUT)
        principal = await self._keys.principal(context)
        if principal is None:
            message = "/metrics needs a key with the role metrics, as `Authorization: Bearer lco_...`"
            raise RpcError(StatusCode.UNAUTHENTICATED, message)
        everything = principal.organizations is None
        if principal.role is not Role.METRICS and not (principal.role is Role.ADMIN and everything):
            message = "/metrics needs a key with the role metrics, or an admin's of all organizations"
            raise RpcError(StatusCode.PERMISSION_DENIED, message)


def _is_local(scope: Scope) -> bool:
    headers = {name.lower(): value for name, value in scope["headers"]}
    if not _FORWARDED.isdisjoint(headers):
        return False
    client = scope.get("client")
    if not client or not client[0]:
        return True
    return _is_loopback(client[0]) and _is_loopback(_host_of(headers.get(b"host", b"")))


def _host_of(header: bytes) -> str:
    try:
        return urlsplit(f"//{header.decode('latin-1')}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
