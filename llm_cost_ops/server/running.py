"""What runs the service: an ASGI app over a ledger, and the process with its listeners."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from llm_cost_ops._gen.messages import GetReadinessRequest
from llm_cost_ops._gen.methods import APPLY_RETENTION, GET_HEALTH, GET_READINESS
from llm_cost_ops.config import REPORTED_PROVIDERS, without_password
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.lazy import missing_library
from llm_cost_ops.ledger import Ledger, open_ledger
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.method import MethodDescriptor
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.server.access_log import ACCESS_LOGS, AccessLog
from llm_cost_ops.server.admission import Admission
from llm_cost_ops.server.app import HttpServer, Server, ServerTls
from llm_cost_ops.server.app import serve as run_servers
from llm_cost_ops.server.calls import CallObserver, ServedCall
from llm_cost_ops.server.http import AsgiApp, Pages
from llm_cost_ops.server.limits import AsgiLimits
from llm_cost_ops.server.metrics import Metrics
from llm_cost_ops.server.metrics_page import MetricsPage
from llm_cost_ops.server.reference import Reference
from llm_cost_ops.server.traces import TRACES_PATH, Traces
from llm_cost_ops.service import Service
from llm_cost_ops.service.access.authentication import Authentication
from llm_cost_ops.service.access.tenancy import OPEN
from llm_cost_ops.service.retention import apply_retention

__all__ = ["address_of", "asgi_app", "check_reach", "is_local", "reload_certificates", "serve"]

MAX_CALLS = 256
_DAY = 86_400.0

_log = logging.getLogger(__name__)

_PORTS = {"http": 8080, "grpc": 50051}
_REQUIRED = "every call but health needs an API key"
_UNASKED = (
    "NO API KEYS: whoever can connect may read and write everything; "
    "from the first `llm-cost-ops keys create` on, every call needs a key"
)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def asgi_app(
    ledger: Ledger | str,
    *,
    require_keys: bool = True,
    max_calls: int = MAX_CALLS,
    durability: str = "disk",
    reported_providers: Collection[str] = REPORTED_PROVIDERS,
    limits: AsgiLimits | None = None,
    dashboard: bool = False,
    metrics: bool = False,
    access_log: str = "off",
) -> AsgiApp:
    """The HTTP interface as an ASGI app, for an ASGI server or to be mounted under a prefix of another app.

    `ledger` is one that the caller opened and closes, or a URL or path for `open_ledger`. One that is opened
    here is closed at the end of the lifespan; a mounted app has none in most frameworks: await `aclose()`.
    Without `require_keys` anybody may call until there is a first key. More than `max_calls` at a time are
    refused. With `dashboard` its pages are at `/` and below `/dashboard/` of the app, with `metrics` figures
    for Prometheus at `/metrics`, of the calls of this process. With `access_log` "text" or "json" each call
    that was answered is a line on standard error.

    Raises ConfigurationError for another `access_log`, for `reported_providers` that are no list of names,
    and as `open_ledger` does. The file is opened by the first call.
    """
    _check_access_log(access_log)
    opened = None
    if isinstance(ledger, str):
        ledger = opened = open_ledger(ledger, durability=durability, group_commit=True)
    keys = Authentication(ledger.keys, required=require_keys)
    admission = Admission(max_calls, exempt=OPEN)
    counted = Metrics(ledger, admission) if metrics else None
    innermost = [] if counted is None else [counted]
    service = Service(ledger, [admission, keys, *innermost], reported_providers=reported_providers)
    return AsgiApp(
        service.handler,
        close=None if opened is None else service.aclose,
        admit=keys.admit,
        admission=admission,
        limits=limits,
        routes={TRACES_PATH: Traces(service.handler)},
        pages=_pages(service, keys, counted, dashboard=dashboard),
        observe=_observer(counted, access_log),
    )


def serve(
    db: str,
    *,
    http: str | Sequence[str] | None = None,
    grpc: str | Sequence[str] | None = None,
    durability: str = "disk",
    require_keys: bool = False,
    max_calls: int = MAX_CALLS,
    reported_providers: Collection[str] = REPORTED_PROVIDERS,
    tls: ServerTls | None = None,
    announce: Callable[[str], object] = print,
    dashboard: bool = True,
    access_log: str = "off",
    check: bool = False,
) -> None:
    """Run the service until SIGTERM or SIGINT, as `llm-cost-ops serve` does; calls in flight are answered.

    `db` is the path of a SQLite file, or `postgresql://user@host/database`. `http` and `grpc` are addresses
    such as "127.0.0.1:8080" or "unix:PATH", or several; with neither it is HTTP there. Without API keys only
    loopback and Unix sockets are taken. `announce` gets a line about the keys, and one for each listener
    once it accepts. The dashboard is at `/` of HTTP, unless `dashboard` is False; figures for Prometheus are
    at `/metrics`.
    With `access_log` "text" or "json" each call that was answered is a line on standard error.
    With `check` nothing is listened on, so that a server may run there: it ends once the rest was found good,
    that the database can be written among it. SIGHUP has certificates read again.

    Raises ConfigurationError, before anything listens, for what can't be served: an address, the database.
    """
    if "://" in db and db.partition("://")[0] not in ("postgres", "postgresql"):
        rule = "must be the path of a file, or postgresql://user@host/database"
        raise ConfigurationError(f"db {rule}, not {without_password(db)!r}", parameter="db")
    _check_access_log(access_log)
    http = http or ([] if grpc else ["127.0.0.1:8080"])
    listeners = [
        (option, address_of(option, text))
        for option, texts in (("http", http), ("grpc", grpc or []))
        for text in ([texts] if isinstance(texts, str) else texts)
    ]
    asyncio.run(
        _serve(
            db,
            listeners,
            # One that is not there is not made before the addresses are found good.
            exists="://" in db or Path(db).exists(),
            durability=durability,
            require_keys=require_keys,
            max_calls=max_calls,
            reported_providers=reported_providers,
            tls=tls,
            announce=announce,
            dashboard=dashboard,
            access_log=access_log,
            check=check,
        )
    )


async def _serve(
    db: str,
    listeners: list[tuple[str, dict[str, Any]]],
    *,
    exists: bool,
    durability: str,
    require_keys: bool,
    max_calls: int,
    reported_providers: Collection[str],
    tls: ServerTls | None,
    announce: Callable[[str], object],
    dashboard: bool,
    access_log: str,
    check: bool,
) -> None:
    required = require_keys or (exists and await _holds_keys(db))
    for option, where in listeners:
        check_reach(option, where, required=required, secret=tls is not None)
    ledger = await _opened(db, durability)
    announce(_REQUIRED if required else _UNASKED)
    if check:
        await ledger.aclose()
        announce(f"the settings and {without_password(db)} are good")
        return
    keys = Authentication(ledger.keys, required=required)
    admission = Admission(max_calls, exempt=OPEN)
    metrics = Metrics(ledger, admission)
    observe = _observer(metrics, access_log)
    service = Service(ledger, [admission, keys, metrics], reported_providers=reported_providers)
    app = AsgiApp(
        service.handler,
        admit=keys.admit,
        admission=admission,
        routes={TRACES_PATH: Traces(service.handler)},
        pages=_pages(service, keys, metrics, dashboard=dashboard),
        observe=observe,
    )
    servers = [
        HttpServer(app, tls=tls, **where)
        if option == "http"
        else _grpc_server(service, keys, admission, tls, observe, where)
        for option, where in listeners
    ]
    removing = asyncio.create_task(_remove_daily(ledger))

    def drain() -> None:
        service.drain()
        removing.cancel()

    await run_servers(
        servers,
        on_drain=drain,
        close=service.aclose,
        announce=lambda text: announce(f"{text}, {without_password(db)}"),
        reload=None if tls is None else partial(reload_certificates, tls, servers),
    )


async def _remove_daily(ledger: Ledger) -> None:
    """Remove what is past its organization's retention, at the start and every day, until cancelled.

    Several servers over one database may do so at the same time: each transaction removes what is there.
    """
    while True:
        try:
            for done in await apply_retention(ledger, [], _context(APPLY_RETENTION, _DAY)):
                _log.warning(
                    "%d records of %s from before %s were removed by its retention",
                    done.records,
                    done.organization_id,
                    done.removed_before,
                )
        except RpcError as error:
            _log.error("what is past its retention was not removed: %s", error.local_message)
        await asyncio.sleep(_DAY)


def _grpc_server(
    service: Service,
    keys: Authentication,
    admission: Admission,
    tls: ServerTls | None,
    observe: CallObserver | None,
    where: dict[str, Any],
) -> Server:
    try:
        from llm_cost_ops.server.grpc import GrpcServer
    except ImportError as error:
        raise ConfigurationError(str(missing_library(error, "gRPC")), parameter="grpc") from None

    return GrpcServer(
        service.handler,
        ready=partial(_ready, service),
        admit=keys.admit,
        admission=admission,
        tls=tls,
        observe=observe,
        **where,
    )


def reload_certificates(tls: ServerTls, servers: Sequence[Server]) -> None:
    """Use the certificates that are there now. Where they can't be used, those of before stay."""
    try:
        replace(tls)
        for server in servers:
            server.reload_certificates()
    except (ConfigurationError, OSError, ValueError) as error:
        _log.error("the certificates were not read again: %s", error)  # the reason is enough
    else:
        _log.warning("the certificates were read again")


def _check_access_log(form: str) -> None:
    if form not in ACCESS_LOGS:
        raise ConfigurationError(
            f"access_log must be {', '.join(ACCESS_LOGS)}, not {form!r}", parameter="access_log"
        )


def _observer(metrics: Metrics | None, access_log: str) -> CallObserver | None:
    if access_log == "off":
        return None if metrics is None else metrics.observe
    log = AccessLog(access_log)
    if metrics is None:
        return log

    def observe(call: ServedCall) -> None:
        metrics.observe(call)
        log(call)

    return observe


def _pages(
    service: Service, keys: Authentication, metrics: Metrics | None, *, dashboard: bool
) -> list[Pages]:
    pages: list[Pages] = [Reference()]
    if metrics is not None:
        pages.append(MetricsPage(metrics, keys))
    if dashboard:
        try:
            from llm_cost_ops.dashboard import Dashboard
        except ImportError as error:
            raise ConfigurationError(
                str(missing_library(error, "the dashboard")), parameter="dashboard"
            ) from None

        pages.append(Dashboard(service.handler, keys, service.ledger.keys))
    return pages


async def _opened(db: str, durability: str) -> Ledger:
    """The ledger, which has shown that it can be written."""
    ledger = open_ledger(db, durability=durability, group_commit=True)
    try:
        await ledger.check(_context(GET_READINESS))
    except RpcError as error:
        await ledger.aclose()
        shown = without_password(db)
        raise ConfigurationError(f"db {shown}: {error.local_message}", parameter="db") from error
    return ledger


async def _holds_keys(db: str) -> bool:
    ledger = open_ledger(db)
    try:
        return await ledger.keys.any(_context(GET_HEALTH))
    except RpcError as error:
        raise error_from_rpc(error) from error
    finally:
        await ledger.aclose()


def _context(method: MethodDescriptor[Any, Any], timeout: float = 30.0) -> CallContext:
    runtime = AsyncRuntime()
    return CallContext(method, runtime, Metadata(), runtime.monotonic() + timeout)


async def _ready(service: Service) -> bool:
    try:
        await service.health.get_readiness(GetReadinessRequest(), _context(GET_READINESS, 1.0))
    except RpcError:
        return False
    return True


def address_of(option: str, text: str) -> dict[str, Any]:
    """Where HttpServer or GrpcServer is to listen. ConfigurationError for what is no address."""
    if text.startswith("unix:"):
        return {"uds": text.removeprefix("unix:")}
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigurationError(
            f"{option} must be HOST:PORT such as 127.0.0.1:{_PORTS[option]}, or unix:PATH, not {text!r}",
            parameter=option,
        )
    return {"host": host, "port": int(port)}


def is_local(where: dict[str, Any]) -> bool:
    """Whether only this machine can connect."""
    return where.get("host", "localhost") in _LOOPBACK


def check_reach(option: str, where: dict[str, Any] | None, *, required: bool, secret: bool) -> None:
    """Without keys, whoever can connect may do everything: so only this machine may connect."""
    if where is None or is_local(where):
        return
    host = where["host"]
    if not required:
        raise ConfigurationError(
            f"{option} {host}: without API keys the service listens on loopback only (127.0.0.1, [::1] or "
            "a Unix socket); make a key with `llm-cost-ops keys create`, or require keys from the start",
            parameter=option,
        )
    if secret:
        return
    _log.warning(
        "%s %s takes keys and data in plain text: give a TLS certificate and its key, or let a proxy "
        "speak TLS to others",
        option,
        host,
    )
