"""Which proxy the environment names for a host."""

from __future__ import annotations

import ipaddress
import urllib.request
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["environment_proxy", "listed_in_no_proxy"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def environment_proxy(names: Sequence[str], host: str, port: int) -> str | None:
    """The proxy for a host and port: that of the first of `names` that is set, None where NO_PROXY says so.

    `names` are schemes: "https" is HTTPS_PROXY, or https_proxy, which wins. Where the system has settings of
    its own (macOS, Windows), they count where the environment names no proxy.
    """
    known = urllib.request.getproxies()
    if listed_in_no_proxy(known.get("no", ""), host, port):
        return None
    if not urllib.request.getproxies_environment() and urllib.request.proxy_bypass(host):
        return None
    return next((known[name] for name in names if known.get(name)), None)


def listed_in_no_proxy(no_proxy: str, host: str, port: int) -> bool:
    """Whether NO_PROXY lists a host.

    It is a list, separated by commas or blanks, of "*", hosts, which stand for their subdomains too (with
    or without "." or "*." before them), addresses, networks in CIDR form, and hosts and addresses with a
    port. Networks are not compared with the addresses that a host's name resolves to.
    """
    host = host.strip("[]").rstrip(".").lower()
    address = _address(host)
    return any(_matches(entry, host, port, address) for entry in no_proxy.lower().replace(",", " ").split())


def _matches(entry: str, host: str, port: int, address: Address | None) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    listed = _split(entry)
    if listed.port not in {"", str(port)} or not listed.host:
        return False
    if address is not None:
        return _address(listed.host) == address
    return host == listed.host or host.endswith("." + listed.host)


class _Entry(NamedTuple):
    host: str
    port: str


def _split(entry: str) -> _Entry:
    if _address(entry) is not None:
        return _Entry(entry, "")  # the colons of IPv6 are no port's
    host, colon, port = entry.rpartition(":")
    if not colon or not port.isdecimal():
        host, port = entry, ""
    return _Entry(host.strip("[]").removeprefix("*").removeprefix(".").rstrip("."), port)


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
