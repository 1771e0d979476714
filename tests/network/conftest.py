"""Hosts, containers and networks of a test's own: nothing reaches the machine's own interfaces."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from container.contracts.network import AttachmentRequest, Network, NetworkConfiguration
from container.ipc import in_memory
from container.network.service import NetworkService
from container.testing.network import (
    NetworkNamespace,
    can_make_namespaces,
    network_configuration,
)

Serve = Callable[..., AbstractAsyncContextManager[Network]]
Make = Callable[[], NetworkNamespace]


def tables(host: NetworkNamespace) -> str:
    """Return the tables of rules that there are."""
    return host.run("nft", "list", "tables").stdout


async def until(reached: Callable[[], bool], seconds: float = 20) -> None:
    """Return once something holds that the kernel does in its own time."""
    with trio.fail_after(seconds):
        while not reached():  # noqa: ASYNC110
            await trio.sleep(0.005)  # no event tells a test of it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs namespaces where they can't be made."""
    if can_make_namespaces():
        return
    needs = pytest.mark.skip(reason="needs root: makes network namespaces")
    for item in items:
        if Path(__file__).parent in item.path.parents and "host" in getattr(
            item, "fixturenames", ()
        ):
            item.add_marker(needs)


@pytest.fixture
def host() -> Iterator[NetworkNamespace]:
    """The namespace that this test's helpers and their machine live in."""
    with NetworkNamespace() as namespace, namespace.entered():
        yield namespace


@pytest.fixture
def container(host: NetworkNamespace) -> Iterator[Callable[[], NetworkNamespace]]:
    """Makes namespaces of containers."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(NetworkNamespace())


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Serves a network by a helper in this process; the same name is the same network."""

    @asynccontextmanager
    async def serving(
        name: str = "net", configuration: NetworkConfiguration | None = None, **fields: Any
    ) -> AsyncGenerator[Network]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        configuration = configuration or network_configuration(name, **fields)
        async with in_memory(NetworkService(folder, configuration)) as network:
            yield network

    return serving


_numbers = itertools.count(1)


def wants(name: str = "web", **fields: Any) -> AttachmentRequest:
    """Return what a container of that name wants."""
    fields.setdefault("key", f"{name}-{'0' * 12}"[:12])
    fields.setdefault("interface", "eth0")
    return AttachmentRequest(name=name, **fields)


def links(namespace: NetworkNamespace) -> set[str]:
    """Return the names of a namespace's interfaces, loopback left out."""
    shown = namespace.run("ip", "-br", "link").stdout.splitlines()
    return {line.split()[0].partition("@")[0] for line in shown} - {"lo"}
