"""A host of several addresses, some of which nobody answers at."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpcore
import pytest

from llm_cost_ops.transports.http import sockets
from llm_cost_ops.transports.http.sockets import DeadlineBackend
from tests.waiting import MAX_WAIT, until


class Stream(httpcore.NetworkStream):
    def __init__(self) -> None:
        self.socket, self.peer = socket.socketpair()
        self.closed = False

    def close(self) -> None:
        self.closed = True
        self.socket.close()
        self.peer.close()

    def get_extra_info(self, info: str) -> object:
        return self.socket if info == "socket" else None


class Network(httpcore.NetworkBackend):
    """Addresses by their last number: at 1 nobody answers until `answer`, at 2 nobody listens, 3 connects."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.made: dict[str, Stream] = {}
        self.answer = threading.Event()

    def connect_tcp(self, host: str, *_: object) -> httpcore.NetworkStream:
        self.asked.append(host)
        if host.endswith(".2"):
            raise httpcore.ConnectError("refused")
        if host.endswith(".1"):
            assert self.answer.wait(MAX_WAIT)
        return self.made.setdefault(host, Stream())


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.answer.set()
    for stream in made.made.values():
        stream.close()


@pytest.fixture
def connect(network: Network, monkeypatch: pytest.MonkeyPatch) -> Callable[..., httpcore.NetworkStream]:
    backend = DeadlineBackend()
    backend._backend = network

    def call(*addresses: str) -> httpcore.NetworkStream:
        found = [(socket.AF_INET, (address, 80)) for address in addresses]
        monkeypatch.setattr(sockets, "look_up", lambda *_: found)
        return backend.connect_tcp("host.example", 80, time.monotonic() + 10 * MAX_WAIT)

    return call


def test_the_next_address_is_tried_beside_one_that_does_not_answer(
    network: Network, connect: Callable[..., httpcore.NetworkStream]
) -> None:
    stream = connect("192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.3")
    assert stream.get_extra_info("socket") is network.made["192.0.2.3"].socket
    assert network.asked == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    # What connects too late is let go of.
    network.answer.set()
    until(lambda: "192.0.2.1" in network.made and network.made["192.0.2.1"].closed)
    assert not network.made["192.0.2.3"].closed


def test_a_slow_address_is_taken_where_no_other_one_answers(
    network: Network, connect: Callable[..., httpcore.NetworkStream]
) -> None:
    threading.Thread(target=lambda: until(lambda: len(network.asked) == 2) and network.answer.set()).start()
    stream = connect("192.0.2.1", "192.0.2.2")
    assert stream.get_extra_info("socket") is network.made["192.0.2.1"].socket


def test_the_last_error_is_that_of_a_host_where_nobody_listens(
    connect: Callable[..., httpcore.NetworkStream],
) -> None:
    with pytest.raises(httpcore.ConnectError, match="refused"):
        connect("192.0.2.2", "198.51.100.2")
    with pytest.raises(httpcore.ConnectError, match=r"host\.example has no address"):
        connect()
