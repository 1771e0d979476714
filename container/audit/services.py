"""What the running system says of itself: the launcher's services, the API server's containers.

Nobody is started for that, and everybody has a bound: who does not answer is a finding.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio
from attrs import evolve, field, frozen

from container.audit.finding import Finding, Kind, Remedy
from container.contracts.apiserver import Container, Containers
from container.contracts.launcher import Launcher, ServiceState, SystemStatus
from container.ipc import ContainerError, Contract, Unavailable
from container.storage.paths import Paths

ANSWER_SECONDS = 10.0

C = TypeVar("C", bound=Contract)


@frozen
class Word:
    """What was said."""

    status: SystemStatus | None = None
    containers: dict[str, Container] | None = None
    """By id; None when the API server does not run."""
    findings: tuple[Finding, ...] = ()
    pids: frozenset[int] = field(factory=frozenset[int])
    """Of launcher and services."""


@asynccontextmanager
async def connected(contract: type[C], path: Path) -> AsyncGenerator[C]:
    """Connect within a bound; what goes wrong comes out as one error, not a group.

    Raises:
        ContainerError: there is nobody, or no answer.
    """
    with trio.move_on_after(ANSWER_SECONDS) as bound:
        try:
            async with contract.connect(path) as proxy:
                yield proxy
        except* ContainerError as group:
            raise _first(group) from None
    if bound.cancelled_caught:
        raise Unavailable(f"no answer from {path} within {ANSWER_SECONDS:.0f} s")


def _first(group: BaseExceptionGroup[ContainerError]) -> ContainerError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    assert isinstance(found, ContainerError)
    return found


async def ask(paths: Paths) -> Word:
    """Ask launcher and API server."""
    try:
        async with connected(Launcher, paths.launcher_socket) as launcher:
            status = await launcher.status()
    except ContainerError as error:
        return Word(findings=(_silent("launcher", error),))
    pids = {status.pid, *(s.pid for s in status.services if s.pid is not None)}
    findings = [
        Finding(
            Kind.SERVICE,
            service.name,
            f"service {service.name} failed too often and is not started any more",
            f"nothing: see its log in {paths.logs}, then `container system stop` and start",
        )
        for service in status.services
        if service.state is ServiceState.FAILED
    ]
    word = Word(status, None, tuple(findings), frozenset(pids))
    if not any(s.name == "apiserver" and s.state is ServiceState.RUNNING for s in status.services):
        return word
    try:
        async with connected(Containers, paths.apiserver_socket) as containers:
            listed = await containers.list()
    except ContainerError as error:
        return evolve(word, findings=(*findings, _silent("apiserver", error)))
    return evolve(word, containers={container.id: container for container in listed})


def _silent(name: str, error: ContainerError) -> Finding:
    return Finding(
        Kind.SERVICE,
        name,
        f"{name} does not answer: {error.message}",
        "nothing: its log may say why; `container system stop` and start begin anew",
        Remedy.PERSON,
    )
