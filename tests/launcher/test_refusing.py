"""Connections are refused also when no descriptor is left."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from container.launcher.refusing import Refusal


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket that listens at `s` in the current directory."""
    monkeypatch.chdir(tmp_path)  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.setblocking(False)
        made.bind("s")
        made.listen()
        yield made


@pytest.fixture
def client(listener: socket.socket) -> Iterator[socket.socket]:
    """A connection that waits."""
    with socket.socket(socket.AF_UNIX) as made:
        made.connect("s")
        made.settimeout(20)
        yield made


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """The limits of descriptors, which the test may change."""
    found = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield found
    resource.setrlimit(resource.RLIMIT_NOFILE, found)


def forbid_more(limits: tuple[int, int]) -> None:
    """Let this process open no further descriptor."""
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    with pytest.raises(OSError, match="Too many open files"):
        os.open("/dev/null", os.O_RDONLY)


def test_who_connects_is_told_at_once_with_the_descriptor_in_reserve(
    listener: socket.socket, client: socket.socket, limits: tuple[int, int]
) -> None:
    with Refusal() as refusal:
        forbid_more(limits)
        assert refusal.refuse(listener)
        assert client.recv(1) == b""
        assert refusal.refuse(listener)  # nobody waits any more


def test_without_one_in_reserve_it_says_so_and_can_later(
    listener: socket.socket, client: socket.socket, limits: tuple[int, int]
) -> None:
    refusal = Refusal()
    forbid_more(limits)
    assert not refusal.refuse(listener)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with refusal:
        assert refusal.refuse(listener)
        assert client.recv(1) == b""
