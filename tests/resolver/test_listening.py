"""The kernel gives each client's packets to one socket of the row."""

from __future__ import annotations

import socket

import pytest

from container.ipc import Unavailable
from container.resolver import Listener, listen


def received(listener: Listener) -> list[set[bytes]]:
    """Return what each socket of the row has got."""
    found: list[set[bytes]] = []
    for sock in listener.udp:
        here: set[bytes] = set()
        while True:
            try:
                here.add(sock.recv(100))
            except BlockingIOError:
                break
        found.append(here)
    return found


def test_clients_whose_addresses_follow_each_other_have_sockets_of_their_own() -> None:
    listener = listen("127.0.0.1", ways=8)
    try:
        for last in range(10, 26):
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.bind((f"127.0.0.{last}", 0))
                for _ in range(3):
                    client.sendto(str(last).encode(), ("127.0.0.1", listener.udp_port))
        found = received(listener)
        assert [len(here) for here in found] == [2] * 8
        for here in found:
            first, second = sorted(map(int, here))
            assert second == first + 8
    finally:
        listener.close()


def test_one_who_floods_fills_no_buffer_but_his_own() -> None:
    listener = listen("127.0.0.1", ways=8)
    try:
        with (
            socket.socket(type=socket.SOCK_DGRAM) as flooder,
            socket.socket(type=socket.SOCK_DGRAM) as other,
        ):
            flooder.bind(("127.0.0.10", 0))
            other.bind(("127.0.0.11", 0))
            for _ in range(20_000):
                flooder.sendto(b"flood", ("127.0.0.1", listener.udp_port))
            other.sendto(b"other", ("127.0.0.1", listener.udp_port))
        found = received(listener)
        assert {b"other"} in found
        assert {b"flood"} in found
    finally:
        listener.close()


def test_packets_of_ipv6_arrive_whole() -> None:
    listener = listen("::1")
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.sendto(b"query", ("::1", listener.udp_port))
        assert [here for here in received(listener) if here] == [{b"query"}]
    finally:
        listener.close()


@pytest.mark.parametrize("address", ["10.89.77.1", "fd00:89:77::1"])
def test_an_address_may_be_listened_at_before_an_interface_has_it(address: str) -> None:
    listener = listen(address)
    assert listener.udp_port > 1023
    assert listener.tcp_port > 1023
    listener.close()
    listener.close()


def test_what_the_kernel_refuses_is_unavailable_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[socket.socket] = []
    bind = socket.socket.bind

    def refuse_the_third(self: socket.socket, address: tuple[str, int]) -> None:
        opened.append(self)
        if len(opened) == 3:
            raise OSError(105, "No buffer space available")
        bind(self, address)

    monkeypatch.setattr(socket.socket, "bind", refuse_the_third)
    with pytest.raises(Unavailable, match=r"can't listen for DNS at 127\.0\.0\.1: No buffer space"):
        listen("127.0.0.1")
    assert [sock.fileno() for sock in opened] == [-1] * 3
