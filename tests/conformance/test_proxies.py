"""Proxies and CA bundles: what is set reaches the sockets of every network transport, in both colours."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llm_cost_ops import ClientConfig, NetworkError, RetryConfig, TLSConfig
from llm_cost_ops.types import HealthStatus
from tests.conformance.clients import COLOURS, open_client
from tests.tunnels import Tunnels, self_signed, tunnels

WAYS = [(transport, colour) for transport in ("http", "grpc") for colour in COLOURS]
SECRET = "lco_aaaaaaaa_" + "k" * 52


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def network() -> Iterator[Tunnels]:
    with tunnels() as made:
        yield made


class Dialler:
    """Opens clients of the TLS front, which calls itself `host`, and closes them."""

    def __init__(self, transport: str, colour: str, port: int) -> None:
        self._scheme = transport + "s"
        self._colour = colour
        self.port = port
        self._made: list[Any] = []

    def open(self, host: str = "localhost", **settings: Any) -> Any:
        config = ClientConfig(
            base_url=f"{self._scheme}://{host}:{self.port}",
            api_key=SECRET,
            timeout=60,
            retry=RetryConfig(max_retries=0),
            **settings,
        )
        self._made.append(open_client(config.base_url, self._colour, config=config))
        return self._made[-1]

    async def close(self) -> None:
        for client in self._made:
            await client.close()


@pytest.fixture(params=WAYS, ids="-".join)
async def dialler(
    request: pytest.FixtureRequest,
    server_urls: dict[str, str],
    network: Tunnels,
    certificate: tuple[Path, Path],
) -> AsyncIterator[Dialler]:
    transport, colour = request.param
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.set_alpn_protocols(["h2"] if transport == "grpc" else ["http/1.1"])
    port = network.tls_front(urlsplit(server_urls[transport]).port or 0, context)
    made = Dialler(transport, colour, port)
    yield made
    await made.close()


async def test_a_ca_bundle_is_trusted(dialler: Dialler, certificate: tuple[Path, Path]) -> None:
    trusting = dialler.open(tls=TLSConfig(ca_file=str(certificate[0])))
    assert (await trusting.health()).status == HealthStatus.HEALTHY
    with pytest.raises(NetworkError, match=r"(?i)certificate") as caught:
        await dialler.open().health()
    assert caught.value.maybe_applied is False
    assert (caught.value.code, caught.value.attempts) == ("UNTRUSTED_CERTIFICATE", 1)
    assert "; trust who signed it by TLSConfig(ca_file=...) or SSL_CERT_FILE" in str(caught.value)
    with pytest.raises(NetworkError, match=r"(?i)certificate"):
        await dialler.open("127.0.0.1", tls=TLSConfig(ca_file=str(certificate[0]))).health()


async def test_a_ca_bundle_of_the_environment_is_trusted(
    dialler: Dialler, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert (await dialler.open().health()).status == HealthStatus.HEALTHY


async def test_a_proxy_tunnels_and_sees_no_key(
    dialler: Dialler, network: Tunnels, certificate: tuple[Path, Path]
) -> None:
    proxy = f"http://user:p%40ss@127.0.0.1:{network.proxy_port}"
    client = dialler.open(proxy=proxy, tls=TLSConfig(ca_file=str(certificate[0])))
    assert (await client.health()).status == HealthStatus.HEALTHY
    await client.costs.get()
    [head] = set(network.asked)
    assert head.startswith(f"CONNECT localhost:{dialler.port} HTTP/1.1\r\n".encode())
    credentials = base64.b64encode(b"user:p@ss")
    assert b"\r\nproxy-authorization: basic " + credentials.lower() in head.lower()
    assert SECRET.encode() not in b"".join(network.asked)


async def test_a_proxy_of_the_environment_tunnels(
    dialler: Dialler, network: Tunnels, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{network.proxy_port}")
    tls = TLSConfig(ca_file=str(certificate[0]))
    assert (await dialler.open(tls=tls).health()).status == HealthStatus.HEALTHY
    assert len(network.asked) == 1
    monkeypatch.setenv("no_proxy", "localhost")
    assert (await dialler.open(tls=tls).health()).status == HealthStatus.HEALTHY
    assert len(network.asked) == 1, "no_proxy goes there directly"


@pytest.mark.parametrize("answer", ["403 Forbidden", "407 Proxy Authentication Required", "502 Bad Gateway"])
async def test_a_proxy_that_refuses_is_named(dialler: Dialler, network: Tunnels, answer: str) -> None:
    network.answer = f"HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n".encode()
    client = dialler.open(proxy=f"http://127.0.0.1:{network.proxy_port}")
    with pytest.raises(NetworkError, match=answer[:3]) as caught:
        await client.costs.get()
    assert caught.value.maybe_applied is False


async def test_a_proxy_that_is_not_there(dialler: Dialler, unused_tcp_port: int) -> None:
    client = dialler.open(proxy=f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(NetworkError) as caught:
        await client.costs.get()
    assert caught.value.maybe_applied is False
