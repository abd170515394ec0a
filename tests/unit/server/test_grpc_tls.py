"""TLS both ways: the client's settings against the server's credentials, in both colours."""

from __future__ import annotations

import asyncio
import sys

import pytest

from llm_cost_ops import ClientConfig, ConfigurationError, CostOpsClient, NetworkError, RetryConfig
from llm_cost_ops.config import TLSConfig
from llm_cost_ops.server.app import ServerTls
from llm_cost_ops.server.grpc import GrpcServer
from llm_cost_ops.service import open_service
from tests.conformance.clients import COLOURS, open_client
from tests.tunnels import mutual_certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return mutual_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=[False, True], ids=["tls", "mtls"])
async def server(request, certificates):
    tls = ServerTls(
        cert_file=str(certificates / "server.pem"),
        key_file=str(certificates / "server.key"),
        client_ca_file=str(certificates / "client.pem") if request.param else None,
    )
    service = open_service("sqlite://")
    server = GrpcServer(service.handler, host="localhost", port=0, tls=tls)
    server.mutual = request.param
    server.url = await server.start()
    yield server
    await server.stop(0)
    await service.aclose()


@pytest.mark.parametrize("colour", COLOURS)
async def test_certificates(server, certificates, colour):
    assert server.url.startswith("grpcs://localhost:")
    own = {"cert_file": str(certificates / "client.pem"), "key_file": str(certificates / "client.key")}
    settings = [
        (TLSConfig(ca_file=str(certificates / "server.pem"), **own), True),
        (TLSConfig(ca_file=str(certificates / "server.pem")), not server.mutual),
        (TLSConfig(ca_file=str(certificates / "client.pem"), **own), False),
        (None, False),
    ]
    for tls, works in settings:
        config = ClientConfig(base_url=server.url, tls=tls, timeout=60, retry=RetryConfig(max_retries=0))
        client = open_client(server.url, colour, config=config)

        async def ask(client=client, colour=colour):
            # The server runs on this loop: a sync client must not block it.
            return await (_in_thread(client) if colour == "sync" else client.health())

        if works:
            assert (await ask()).status == "healthy"
        else:
            with pytest.raises(NetworkError) as caught:
                await ask()
            assert caught.value.maybe_applied is False
        await client.close()


async def _in_thread(client):
    return await asyncio.to_thread(client._client.health)


async def test_verification_off(server, certificates):
    own = {"cert_file": str(certificates / "client.pem"), "key_file": str(certificates / "client.key")}
    config = ClientConfig(base_url=server.url, tls=TLSConfig(**own), verify_ssl=False)
    with pytest.warns(UserWarning, match="not verified"):
        client = open_client(server.url, "async", config=config)
    assert (await client.health()).status == "healthy"
    await client.close()


def test_without_grpclib_the_message_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("llm_cost_ops.transports.grpc")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "grpclib"] or ["grpclib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'llm-cost-ops\[grpc\]'"):
        CostOpsClient(base_url="grpc://127.0.0.1:1")


@pytest.mark.parametrize("channels", [0, -1, 1.5, True, "2"])
def test_wrong_numbers_of_channels(channels):
    with pytest.raises(ConfigurationError, match="grpc_channels"):
        ClientConfig().with_connection_pool(grpc_channels=channels)


@pytest.mark.parametrize("url", ["grpc://x", "grpc://x:1/path", "grpcs:///path"])
def test_wrong_base_urls(url):
    with pytest.raises(ConfigurationError, match="base_url"):
        CostOpsClient(base_url=url)
