"""The settings of `serve`: where each comes from, and what is refused."""

from __future__ import annotations

import signal
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.cli import main
from llm_cost_ops.cli.settings import PREFIX, SETTINGS, serve_settings
from llm_cost_ops.exceptions import ConfigurationError
from tests.served import served
from tests.tunnels import self_signed

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"


@pytest.fixture
def config(tmp_path):
    def made(text):
        path = tmp_path / "serve.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return made


@given(st.sets(st.sampled_from(["flag", "environment", "file"])))
def test_the_first_source_that_has_a_setting_wins(tmp_path_factory, sources):
    path = tmp_path_factory.mktemp("s") / "serve.toml"
    path.write_text('db = "file"\n' if "file" in sources else "", encoding="utf-8")
    environment = {f"{PREFIX}DB": "environment"} if "environment" in sources else {}
    flags = {"db": "flag"} if "flag" in sources else {}
    wins = next((name for name in ("flag", "environment", "file") if name in sources), SETTINGS["db"].default)
    assert serve_settings(flags, environment, str(path))["db"] == wins


def test_the_environment_has_lists_and_yes_and_the_file(config):
    path = config('tls_cert = "c.pem"\n')
    environment = {
        f"{PREFIX}HTTP": "127.0.0.1:1, unix:/a",
        f"{PREFIX}DASHBOARD": "false",
        f"{PREFIX}MAX_CALLS": "7",
        f"{PREFIX}CONFIG": path,
        "OTHER": "x",
    }
    found = serve_settings({}, environment)
    assert found["http"] == ("127.0.0.1:1", "unix:/a")
    assert (found["dashboard"], found["max_calls"], found["tls_cert"]) == (False, 7, "c.pem")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_cals = 1", "'max_cals'; did you mean max_calls?"),
        ("zzz = 1", "'zzz': settings are db, http"),
        ("max_calls = 0", "max_calls must be a number from 1 on"),
        ("max_calls = true", "max_calls must be a number from 1 on"),
        ('max_calls = "9"', "max_calls must be a number from 1 on"),
        ('dashboard = "no"', "dashboard must be true or false"),
        ("http = [1]", "http must be a text or a list of texts"),
        ('access_log = "xml"', "access_log must be one of off, text, json"),
        ("db = ", "no TOML"),
        ("[http]", "http must be a text or a list of texts"),
    ],
)
def test_what_is_no_setting_is_refused(config, text, said):
    with pytest.raises(ConfigurationError) as raised:
        serve_settings({}, {}, config(text))
    assert said in str(raised.value)


def test_the_environment_is_refused_as_the_file_is():
    with pytest.raises(ConfigurationError, match="SERVE_HTPP: there is no setting 'htpp'; did you mean http"):
        serve_settings({}, {f"{PREFIX}HTPP": "x"})
    with pytest.raises(ConfigurationError, match="max_calls must be a number"):
        serve_settings({}, {f"{PREFIX}MAX_CALLS": "many"})
    with pytest.raises(ConfigurationError, match="No such file"):
        serve_settings({}, {}, "/nowhere/serve.toml")


def test_the_docs_have_the_table_of_the_code():
    text = DOCS.read_text(encoding="utf-8")
    for name, setting in SETTINGS.items():
        assert f"| `{name}` | `{PREFIX}{name.upper()}` | {setting.help}" in text


def test_check_says_what_is_good_and_listens_on_nothing(tmp_path, config, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = config(f'db = "{tmp_path}/costs.db"\nhttp = "127.0.0.1:{taken.getsockname()[1]}"\n')
        assert main(["serve", "--check", "--config", path]) == 0
    printed = capsys.readouterr().out
    assert "are good" in printed
    assert "listening" not in printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('http = "0.0.0.0:1"', "without API keys the service listens on loopback only"),
        ('http = "here"', "http must be HOST:PORT"),
        ('tls_cert = "none.pem"', "TLS needs --tls-key"),
        ('tls_cert = "none.pem"\ntls_key = "none.key"', "no such file"),
        ('db = "/nowhere/costs.db"', "db /nowhere/costs.db"),
    ],
)
def test_check_says_what_is_not(tmp_path, config, capsys, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--check", "--config", config(text)]) == 2
    assert said in capsys.readouterr().err


def test_several_addresses_of_both_kinds(tmp_path):
    path = tmp_path / "costs.sock"
    arguments = ["--db", str(tmp_path / "costs.db"), "--http", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with served(*arguments, "--http", f"unix:{path}", "--grpc", "127.0.0.1:0", listeners=4) as server:
        first, second, third, fourth = server.urls
        assert first != second
        assert third == f"unix:{path}"
        assert fourth.startswith("grpc://")
        for url in (first, second):
            assert httpx.get(f"{url}/ready").status_code == 200
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://costs/metrics").status_code == 200


def certificate_of(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as secured:
        return secured.getpeercert(binary_form=True)


def test_a_renewed_certificate_is_used_after_sighup(tmp_path):
    cert, key = self_signed(tmp_path)
    arguments = ["--db", str(tmp_path / "costs.db"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    with served(*arguments, "--tls-cert", str(cert), "--tls-key", str(key), listeners=2) as server:
        ports = [int(url.rpartition(":")[2]) for url in server.urls]
        first = ssl.PEM_cert_to_DER_cert(cert.read_text(encoding="ascii"))
        assert [certificate_of(port) for port in ports] == [first, first]
        self_signed(tmp_path)
        assert [certificate_of(port) for port in ports] == [first, first]
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("certificates were read again")
        renewed = ssl.PEM_cert_to_DER_cert(cert.read_text(encoding="ascii"))
        assert renewed != first
        assert [certificate_of(port) for port in ports] == [renewed, renewed]
        cert.write_text("nothing", encoding="ascii")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("certificates were not read again")
        assert [certificate_of(port) for port in ports] == [renewed, renewed]
        assert server.process.poll() is None
