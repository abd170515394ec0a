"""The settings of `serve` and `proxy`: where each comes from, and what is refused."""

from __future__ import annotations

import argparse
import signal
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.cli import _parser, main
from llm_cost_ops.cli.settings import PROXY, SERVE, read_settings
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
    environment = {f"{SERVE.prefix}DB": "environment"} if "environment" in sources else {}
    flags = {"db": "flag"} if "flag" in sources else {}
    wins = next(
        (name for name in ("flag", "environment", "file") if name in sources), SERVE.known["db"].default
    )
    assert read_settings(SERVE, flags, environment, str(path))["db"] == wins


def test_the_environment_has_lists_and_yes_and_the_file(config):
    path = config('tls_cert = "c.pem"\n')
    environment = {
        f"{SERVE.prefix}HTTP": "127.0.0.1:1, unix:/a",
        f"{SERVE.prefix}DASHBOARD": "false",
        f"{SERVE.prefix}MAX_CALLS": "7",
        f"{SERVE.prefix}CONFIG": path,
        "OTHER": "x",
    }
    found = read_settings(SERVE, {}, environment)
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
        read_settings(SERVE, {}, {}, config(text))
    assert said in str(raised.value)


def test_the_environment_is_refused_as_the_file_is():
    with pytest.raises(ConfigurationError, match="SERVE_HTPP: there is no setting 'htpp'; did you mean http"):
        read_settings(SERVE, {}, {f"{SERVE.prefix}HTPP": "x"})
    with pytest.raises(ConfigurationError, match="max_calls must be a number"):
        read_settings(SERVE, {}, {f"{SERVE.prefix}MAX_CALLS": "many"})
    with pytest.raises(ConfigurationError, match="No such file"):
        read_settings(SERVE, {}, {}, "/nowhere/serve.toml")


@pytest.mark.parametrize("settings", [SERVE, PROXY])
@pytest.mark.parametrize("more", ["", "EU_"])
def test_what_kubernetes_says_of_a_service_is_no_setting(settings, more):
    own = "tcp://10.0.0.11:8090"
    links = {
        "SERVICE_HOST": "10.0.0.11",
        "SERVICE_PORT": "8090",
        "SERVICE_PORT_HTTP": "8090",
        "PORT": own,
        "PORT_8090_TCP": own,
        "PORT_8090_TCP_PROTO": "tcp",
        "PORT_8090_TCP_PORT": "8090",
        "PORT_8090_TCP_ADDR": "10.0.0.11",
    }
    set_by_it = {f"{settings.prefix}{more}{name}": text for name, text in links.items()}
    assert read_settings(settings, {}, set_by_it) == read_settings(settings, {}, {})
    with pytest.raises(ConfigurationError, match="there is no setting 'port'"):
        read_settings(settings, {}, {f"{settings.prefix}PORT": "8090"})


def test_the_docs_have_the_table_of_the_code():
    text = DOCS.read_text(encoding="utf-8")
    for settings in (SERVE, PROXY):
        for name, setting in settings.known.items():
            assert f"| `{name}` | `{settings.prefix}{name.upper()}` | {setting.help}" in text


@pytest.mark.parametrize(("command", "settings"), [("serve", SERVE), ("proxy", PROXY)])
def test_every_setting_has_a_flag_and_every_flag_a_setting(command, settings):
    actions = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    flags = {action.dest for action in actions.choices[command]._actions} - {"help", "config", "check"}
    assert flags == set(settings.known)


def test_providers_of_the_proxy_are_a_table_or_pairs(config):
    path = config('http = "unix:/a"\n[upstream]\nopenai = "https://api.openai.com"\n')
    assert read_settings(PROXY, {}, {}, path)["upstream"] == {"openai": "https://api.openai.com"}
    variables = {f"{PROXY.prefix}UPSTREAM": "a=https://a.example/?x=1, b=https://b.example"}
    found = read_settings(PROXY, {}, variables, path)
    assert found["upstream"] == {"a": "https://a.example/?x=1", "b": "https://b.example"}
    assert found["http"] == "unix:/a"
    for wrong in ("a", "a=", "=b"):
        with pytest.raises(ConfigurationError, match="upstream must be a table of texts"):
            read_settings(PROXY, {}, {f"{PROXY.prefix}UPSTREAM": wrong})


def test_of_two_settings_that_stand_for_each_other_the_stronger_source_has_its_way(config):
    path = config('db = "costs.db"\n')
    found = read_settings(PROXY, {}, {f"{PROXY.prefix}BASE_URL": "http://costs"}, path)
    assert (found["db"], found["base_url"]) == (None, "http://costs")
    found = read_settings(PROXY, {"db": "flag.db"}, {f"{PROXY.prefix}BASE_URL": "http://costs"}, path)
    assert (found["db"], found["base_url"]) == ("flag.db", None)
    with pytest.raises(ConfigurationError, match="give db or base_url, not both"):
        read_settings(PROXY, {}, {}, config('db = "a"\nbase_url = "b"\n'))


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
