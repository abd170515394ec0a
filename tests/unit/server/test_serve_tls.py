"""`serve --tls-cert --tls-key --tls-client-ca`, over HTTP and gRPC, with clients of both colours."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest

from llm_cost_ops import AsyncCostOpsClient, ClientConfig, ConfigurationError, NetworkError, RetryConfig
from llm_cost_ops.cli import main
from llm_cost_ops.config import TLSConfig
from llm_cost_ops.server.app import HttpServer, ServerTls
from llm_cost_ops.server.grpc import GrpcServer
from llm_cost_ops.server.http import AsgiApp
from llm_cost_ops.server.running import check_reach
from llm_cost_ops.service import open_service
from tests.conformance.clients import COLOURS, open_client, running_server
from tests.tunnels import mutual_certificates
from tests.waiting import MAX_WAIT

DOORS = ("--http", "localhost:0", "--grpc", "localhost:0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mutual_certificates(tmp_path_factory.mktemp("tls"))


def options(folder: Path, *, mutual: bool) -> tuple[str, ...]:
    given = ("--tls-cert", str(folder / "server.pem"), "--tls-key", str(folder / "server.key"))
    return (*given, "--tls-client-ca", str(folder / "client.pem")) if mutual else given


@pytest.mark.slow
@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
async def test_serve_speaks_tls(folder: Path, tmp_path: Path, mutual: bool) -> None:
    own = {"cert_file": str(folder / "client.pem"), "key_file": str(folder / "client.key")}
    settings: list[tuple[TLSConfig | None, bool]] = [
        (TLSConfig(ca_file=str(folder / "server.pem"), **own), True),
        (TLSConfig(ca_file=str(folder / "server.pem")), not mutual),
        (None, False),
    ]
    with running_server(tmp_path, *DOORS, *options(folder, mutual=mutual)) as urls:
        assert sorted(urls) == ["grpcs", "https"]
        for url in urls.values():
            assert "://localhost:" in url, "the name in the certificate"
            for colour in COLOURS:
                for tls, works in settings:
                    config = ClientConfig(tls=tls, timeout=MAX_WAIT, retry=RetryConfig(max_retries=0))
                    client = open_client(url, colour, config=config)
                    if works:
                        assert (await client.health()).status == "healthy"
                    else:
                        with pytest.raises(NetworkError):
                            await client.health()
                    await client.close()
        async with httpx.AsyncClient() as plain:
            with pytest.raises(httpx.TransportError):
                await plain.get(urls["https"].replace("https", "http") + "/health")


async def test_a_unix_socket_stays_plain(folder: Path, tmp_path: Path) -> None:
    tls = ServerTls(cert_file=str(folder / "server.pem"), key_file=str(folder / "server.key"))
    service = open_service("sqlite://")
    path = str(tmp_path / "s.sock")
    server = GrpcServer(service.handler, uds=path, tls=tls)
    assert await server.start() == f"unix:{path}"
    async with AsyncCostOpsClient(base_url=f"grpc://{path}", timeout=MAX_WAIT) as client:
        assert (await client.health()).status == "healthy"
    await server.stop(0)
    http = HttpServer(AsgiApp(service.handler), uds=path, tls=tls)
    await http.start()
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path)) as plain:
        assert (await plain.get("http://x/health")).status_code == 200
    await http.stop(0)
    await service.aclose()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", "--http", "127.0.0.1:0", *arguments]) == 2
    return capsys.readouterr().err


def test_half_of_it_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert, key, ca = (str(folder / name) for name in ("server.pem", "server.key", "client.pem"))
    assert "TLS needs --tls-key" in refused(capsys, "--tls-cert", cert)
    assert "TLS needs --tls-cert" in refused(capsys, "--tls-key", key)
    assert "TLS needs --tls-cert" in refused(capsys, "--tls-client-ca", ca)


def test_files_that_can_not_be_used_are_refused(folder: Path, tmp_path: Path) -> None:
    cert, key = str(folder / "server.pem"), str(folder / "server.key")
    (tmp_path / "garbage.pem").write_text("nothing", encoding="ascii")
    locked = tmp_path / "locked.key"
    command = f"openssl ec -in {key} -out {locked} -aes128 -passout pass:secret"
    subprocess.run(command.split(), check=True, capture_output=True)
    garbage, missing = str(tmp_path / "garbage.pem"), str(tmp_path / "no.pem")
    wrong = [
        (missing, key, None, "tls-cert"),
        (cert, missing, None, "tls-cert"),
        (garbage, key, None, "tls-cert"),
        (cert, str(folder / "client.key"), None, "tls-cert"),
        (cert, str(locked), None, "tls-cert"),
        (cert, key, missing, "tls-client-ca"),
        (cert, key, garbage, "tls-client-ca"),
    ]
    for cert_file, key_file, authorities, option in wrong:
        with pytest.raises(ConfigurationError, match="can't be used") as caught:
            ServerTls(cert_file=cert_file, key_file=key_file, client_ca_file=authorities)
        assert caught.value.parameter == option


def test_without_tls_a_public_address_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for secret in (True, False):
        check_reach("http", {"host": "0.0.0.0"}, required=True, secret=secret)
        told = caplog.text
        caplog.clear()
        assert ("plain text: give a TLS certificate" in told) is not secret
