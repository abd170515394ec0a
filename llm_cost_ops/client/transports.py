"""Which transport a URL names: embedded, HTTP or gRPC. Nothing of the others is loaded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from llm_cost_ops.config import EMBEDDED, ClientConfig, base_urls, split_base_url, split_names
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.lazy import missing_library
from llm_cost_ops.rpc.interceptor import Transport

if TYPE_CHECKING:
    import httpx

    from llm_cost_ops.transports.serializer import Serializer

    HttpClient = httpx.Client | httpx.AsyncClient

__all__ = ["open_transport"]


def open_transport(
    config: ClientConfig, http_client: HttpClient | None, serializer: Serializer | None, *, sync: bool
) -> Transport:
    """The transport of a client. Raises ConfigurationError for what does not go with the scheme."""
    scheme = split_base_url(config.base_url).scheme
    if http_client is not None and scheme not in ("http", "https"):
        raise ConfigurationError(
            f"http_client goes with an http(s) base_url, not with {scheme}", parameter="http_client"
        )
    if serializer is not None:
        from llm_cost_ops.transports.serializer import check_serializer

        check_serializer(serializer, scheme)
    if scheme in EMBEDDED:
        return _embedded_transport(config, sync=sync)
    urls = base_urls(config.base_url)
    transports: list[Any]
    if scheme in ("grpc", "grpcs"):
        transports = _grpc_transports(urls, config, serializer, sync=sync)
    else:
        transports = _http_transports(urls, config, http_client, serializer, sync=sync)
    if len(transports) == 1:
        only: Transport = transports[0]
        return only
    from llm_cost_ops.transports.failover import FailoverTransport, Rotation, Server

    # Clients that start together do not all begin with the same server.
    rotation = Rotation(len(urls), random.randrange(len(urls)))
    return FailoverTransport(list(map(Server, urls, transports)), rotation)


def _embedded_transport(config: ClientConfig, *, sync: bool) -> Transport:
    from llm_cost_ops.service import open_service
    from llm_cost_ops.transports.inprocess import InProcessTransport

    query = parse_qs(split_base_url(config.base_url).query, keep_blank_values=True)
    stated = query.pop("reported_providers", None)
    url = config.base_url.partition("?")[0]
    service = open_service(
        f"{url}?{urlencode(query, doseq=True)}" if query else url,
        durability=config.durability,
        group_commit=not sync,
        reported_providers=config.reported_providers if stated is None else split_names(stated[-1]),
        origin="client",
    )
    return InProcessTransport(service.handler, service.aclose)


def _http_transports(
    urls: Sequence[str],
    config: ClientConfig,
    http_client: HttpClient | None,
    serializer: Serializer | None,
    *,
    sync: bool,
) -> list[Any]:
    from llm_cost_ops.transports.http.client import AsyncHttpTransport, HttpTransport

    if http_client is not None:
        _check_http_client(http_client, sync=sync)
    kind: Any = HttpTransport if sync else AsyncHttpTransport
    pool = config.connection_pool
    verify: Any = config.verify_ssl
    if http_client is None and (config.tls is not None or urls[0].lower().startswith("https:")):
        from llm_cost_ops.transports.net.tls import ssl_context

        verify = ssl_context(config.tls, verify=config.verify_ssl)
    return [
        kind(
            url,
            max_connections=min(pool.max_connections, pool.max_in_flight),
            max_keepalive_connections=pool.keepalive_connections,
            keepalive_expiry=pool.keepalive_expiry,
            verify=verify,
            proxy=config.proxy,
            http_client=http_client,
            serializer=serializer,
        )
        for url in urls
    ]


def _check_http_client(http_client: object, *, sync: bool) -> None:
    import httpx

    if not isinstance(http_client, httpx.Client if sync else httpx.AsyncClient):
        word = "Client" if sync else "AsyncClient"
        given = f"{type(http_client).__module__}.{type(http_client).__name__}"
        raise ConfigurationError(f"http_client must be an httpx.{word}, not {given}", parameter="http_client")


def _grpc_transports(
    urls: Sequence[str], config: ClientConfig, serializer: Serializer | None, *, sync: bool
) -> list[Any]:
    try:
        from llm_cost_ops.transports.grpc.client import AsyncGrpcTransport, GrpcTransport
    except ImportError as error:
        raise ConfigurationError(str(missing_library(error, "gRPC")), parameter="base_url") from None

    tls = None
    if split_base_url(config.base_url).scheme == "grpcs":
        from llm_cost_ops.transports.net.tls import ssl_context

        tls = ssl_context(config.tls, verify=config.verify_ssl, alpn=("h2",))
    kind: Any = GrpcTransport if sync else AsyncGrpcTransport
    try:
        return [
            kind(
                url,
                channels=config.connection_pool.grpc_channels,
                max_in_flight=config.connection_pool.max_in_flight,
                tls=tls,
                proxy=config.proxy,
                serializer=serializer,
            )
            for url in urls
        ]
    except ValueError as error:
        parameter = "proxy" if str(error).startswith("proxy") else "base_url"
        raise ConfigurationError(str(error), parameter=parameter) from None
