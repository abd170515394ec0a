"""What runs the proxy: an ASGI app over upstreams and a client, and the process that serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from llm_cost_ops.client.attribution import Attributes
from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient
from llm_cost_ops.client.observing import check_stream_usage, sink_of
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.ledger import Ledger, open_ledger
from llm_cost_ops.proxy.app import ProxyApp
from llm_cost_ops.proxy.callers import Callers
from llm_cost_ops.proxy.limits import ProxyLimits
from llm_cost_ops.proxy.upstreams import upstreams_of
from llm_cost_ops.server.app import HttpServer, ServerTls
from llm_cost_ops.server.app import serve as run_servers
from llm_cost_ops.server.limits import ConnectionLimits
from llm_cost_ops.server.running import address_of, check_reach, is_local, reload_certificates

__all__ = ["DEFAULT_ADDRESS", "asgi_app", "serve"]

DEFAULT_ADDRESS = "127.0.0.1:8090"

# A stream's reader may take its time between two parts.
_CONNECTION = ConnectionLimits(write_timeout=300.0)

StreamUsage = bool | Literal["auto"]


def asgi_app(
    upstreams: Mapping[str, str],
    client: CostOpsClient | AsyncCostOpsClient,
    *,
    keys: Ledger | str | None = None,
    require_keys: bool = True,
    stream_usage: StreamUsage = "auto",
    limits: ProxyLimits | None = None,
) -> ProxyApp:
    """The recording proxy as an ASGI app, for an ASGI server or to be mounted under a prefix of another app.

    `/<name>/<path>` is passed on to the upstream of that name: its URL and the path. Calls that are billed
    are recorded by the recorder of `client`, which the caller closes, for its organization, project and
    labels where a request names none. `keys` is the ledger whose API keys callers show as `x-lco-api-key`,
    or a URL or path for `open_ledger`; one that is opened here is closed at the end of the lifespan, or by
    `aclose()`. Without `require_keys` a call without a key passes too. `stream_usage` is as in `instrument`.

    Raises ConfigurationError for what can't be an upstream, and as `open_ledger` does.
    """
    if require_keys and keys is None:
        raise ConfigurationError("keys must be given, or require_keys be False", parameter="keys")
    check_stream_usage(stream_usage)
    made = upstreams_of(upstreams)
    ledger = open_ledger(keys) if isinstance(keys, str) else keys
    config = client.config
    return ProxyApp(
        made,
        sink_of(client),
        Callers(None if ledger is None else ledger.keys, required=require_keys),
        defaults=Attributes(
            organization_id=config.organization_id, project_id=config.project_id, labels=config.labels
        ),
        limits=limits or ProxyLimits(),
        stream_usage=stream_usage,
        close=ledger.aclose if ledger is not None and isinstance(keys, str) else None,
    )


def serve(
    upstreams: Mapping[str, str],
    client: CostOpsClient,
    *,
    http: str = DEFAULT_ADDRESS,
    keys: str | None = None,
    require_keys: bool = False,
    stream_usage: StreamUsage = "auto",
    limits: ProxyLimits | None = None,
    tls: ServerTls | None = None,
    announce: Callable[[str], object] = print,
    check: bool = False,
) -> None:
    """Run the proxy until SIGTERM or SIGINT, as `llm-cost-ops proxy` does; calls in flight are answered.

    `http` is an address such as "127.0.0.1:8090" or "unix:PATH". On any but loopback and Unix sockets keys
    are required. The client is closed at the end: what was recorded is sent, or lies in its spool. For the
    rest see `asgi_app`.
    With `check` nothing is listened on: it ends once the settings were found good, and that the keys can be
    read. SIGHUP has certificates read again.

    Raises ConfigurationError, before anything listens, for what can't be served.
    """
    where = address_of("http", http)
    required = require_keys or not is_local(where)
    if required and keys is None:
        raise ConfigurationError(
            "keys must be given: a database whose API keys callers show, as they must on any address but "
            "loopback and Unix sockets",
            parameter="keys",
        )
    check_reach("http", where, required=required, secret=tls is not None)
    app = asgi_app(
        upstreams, client, keys=keys, require_keys=required, stream_usage=stream_usage, limits=limits
    )
    announce(
        "every call needs an API key, as x-lco-api-key"
        if required
        else "NO API KEYS NEEDED: whoever can connect is recorded for the organization that they name"
    )
    if check:
        asyncio.run(_check(app, announce))
        return
    # What a process that was killed left in the spool does not wait for the first call.
    client.flush(0)
    asyncio.run(_serve(app, where, tls, client, announce))


async def _check(app: ProxyApp, announce: Callable[[str], object]) -> None:
    try:
        await app.callers.check()
    finally:
        await app.aclose()
    announce("the settings are good")


async def _serve(
    app: ProxyApp,
    where: dict[str, Any],
    tls: ServerTls | None,
    client: CostOpsClient,
    announce: Callable[[str], object],
) -> None:
    async def close() -> None:
        await app.aclose()
        await asyncio.to_thread(client.close)

    server = HttpServer(app, limits=_CONNECTION, tls=tls, **where)
    await run_servers(
        [server],
        on_drain=app.drain,
        close=close,
        announce=announce,
        reload=None if tls is None else partial(reload_certificates, tls, [server]),
    )
