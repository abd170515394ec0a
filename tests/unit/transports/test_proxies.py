"""NO_PROXY in the forms that curl, Go and others read: ports, networks, subdomains."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops import ClientConfig, ConfigurationError, CostOpsClient
from llm_cost_ops.transports.grpc.dial import proxy_of, target_of
from llm_cost_ops.transports.http.exchange import proxy_for
from llm_cost_ops.transports.net.proxies import environment_proxy, listed_in_no_proxy

FORMS = [
    ("*", "costs.example", 443, True),
    ("costs.example", "costs.example", 443, True),
    ("costs.example", "eu.costs.example", 443, True),
    ("costs.example", "discosts.example", 443, False),
    (".costs.example", "eu.costs.example", 443, True),
    ("*.costs.example", "eu.costs.example", 443, True),
    ("COSTS.example.", "costs.EXAMPLE.", 443, True),
    ("costs.example:8443", "costs.example", 8443, True),
    ("costs.example:8443", "eu.costs.example", 8443, True),
    ("costs.example:8443", "costs.example", 443, False),
    ("other.example, costs.example:443", "costs.example", 443, True),
    ("other.example costs.example", "costs.example", 443, True),
    ("127.0.0.1", "127.0.0.1", 80, True),
    ("127.0.0.1:80", "127.0.0.1", 80, True),
    ("127.0.0.1:81", "127.0.0.1", 80, False),
    ("127.0.0.0/8", "127.0.0.1", 80, True),
    ("10.0.0.0/8", "127.0.0.1", 80, False),
    ("10.1.2.3/8", "10.9.9.9", 80, True),
    ("10.0.0.0/8", "10.example", 80, False),
    ("0.0.0.1", "127.0.0.1", 80, False),
    (".0.1", "127.0.0.1", 80, False),
    ("::1", "::1", 80, True),
    ("[::1]", "::1", 80, True),
    ("[::1]:80", "::1", 80, True),
    ("[::1]:81", "::1", 80, False),
    ("0:0:0:0:0:0:0:1", "::1", 80, True),
    ("fd00::/8", "fd12::3", 80, True),
    ("fd00::/8", "10.0.0.1", 80, False),
    ("10.0.0.0/99", "10.0.0.1", 80, False),
    ("nonsense/8", "10.0.0.1", 80, False),
    ("", "costs.example", 443, False),
    (" , ,, ", "costs.example", 443, False),
    (":443", "costs.example", 443, False),
    (".", "costs.example", 443, False),
]


@pytest.mark.parametrize(("no_proxy", "host", "port", "listed"), FORMS)
def test_no_proxy(no_proxy: str, host: str, port: int, listed: bool) -> None:
    assert listed_in_no_proxy(no_proxy, host, port) is listed


@given(st.text(), st.text(), st.integers(0, 65535))
def test_no_text_is_too_odd(no_proxy: str, host: str, port: int) -> None:
    assert listed_in_no_proxy(no_proxy, host, port) in {True, False}


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses())
def test_a_network_lists_its_addresses(network: Any, prefix: int, address: Any) -> None:
    made = ipaddress.ip_network(f"{network}/{min(prefix, network.max_prefixlen)}", strict=False)
    assert listed_in_no_proxy(str(made), str(address), 80) is (address in made)
    assert listed_in_no_proxy(str(made), str(network), 80)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
    return monkeypatch


@pytest.mark.parametrize(
    ("no_proxy", "asked"),
    [("10.0.0.1:50051", False), ("10.0.0.1:50052", True), ("10.0.0.0/24", False), ("10.0.1.0/24", True)],
)
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_both_transports_heed_it(
    environment: pytest.MonkeyPatch, variable: str, no_proxy: str, asked: bool
) -> None:
    environment.setenv(variable, no_proxy)
    assert (proxy_for("http://10.0.0.1:50051", None) is not None) is asked
    assert (proxy_for("https://10.0.0.1:50051/base", None) is not None) is asked
    assert (proxy_of(target_of("grpc://10.0.0.1:50051"), None) is not None) is asked
    assert (proxy_of(target_of("grpcs://10.0.0.1:50051"), None) is not None) is asked


def test_a_port_that_is_not_written_is_the_usual_one(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("NO_PROXY", "costs.example:443")
    assert proxy_for("https://costs.example", None) is None
    assert proxy_of(target_of("grpcs://costs.example"), None) is None
    assert proxy_for("http://costs.example", None) is not None


def test_a_proxy_that_is_given_is_asked_whatever_no_proxy_says(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("NO_PROXY", "*")
    assert environment_proxy(("https", "all"), "costs.example", 443) is None
    assert proxy_for("https://costs.example", "http://mine.example") is not None
    assert proxy_of(target_of("grpcs://costs.example"), "http://mine.example:1") is not None


@pytest.mark.parametrize(
    "proxy",
    [
        "http://u:hunter2@h:port",
        "http://u:hunt/er2@h:1",
        "ftp://u:hunter2@h",
        "http://",
        "://",
        "http://[::1",
    ],
)
@pytest.mark.parametrize("base_url", ["http://10.0.0.1:1", "https://10.0.0.1:1", "grpc://10.0.0.1:1"])
@pytest.mark.parametrize("given", [True, False])
def test_a_wrong_proxy_is_told_by_its_rule_and_not_by_its_password(
    environment: pytest.MonkeyPatch, proxy: str, base_url: str, given: bool
) -> None:
    for name in ("http_proxy", "https_proxy"):
        environment.setenv(name, "" if given else proxy)
    config = ClientConfig(base_url=base_url, proxy=proxy if given else None)
    with pytest.raises(ConfigurationError, match=r"^proxy .*must be ") as caught:
        CostOpsClient(config=config)
    assert "hunt" not in str(caught.value)
