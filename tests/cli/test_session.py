"""How a command line reaches real services: connecting, starting them, giving up."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from container.cli.main import main
from container.cli.session import Session
from container.contracts.apiserver import ContainerStatus
from container.ipc import (
    Actor,
    ContainerError,
    DeadlineExceeded,
    Fate,
    NotFound,
    PeerGone,
    open_service,
)
from container.storage.paths import Paths


@pytest.fixture
def paths() -> Iterator[Paths]:
    """Paths of a system that is not there; short, as the path of a socket must be."""
    with tempfile.TemporaryDirectory(prefix="cli-") as folder:
        run = Path(folder) / "run"
        run.mkdir(mode=0o700)
        yield Paths(root=Path(folder) / "root", run=run)


@pytest.fixture
def service(session: Any, fake: Any) -> Any:
    """The fake containers, as a service."""

    class Service(Actor, fake.FakeContainers):
        pass

    service = Service()
    service.add("web", ContainerStatus.RUNNING)
    session.fake_containers = service
    return service


async def test_a_service_that_is_up_is_reached(paths: Paths, service: Any) -> None:
    async with open_service(service, at=paths.apiserver_socket):
        async with Session(paths).containers() as containers:
            assert [container.name for container in await containers.list()] == ["web"]


async def test_a_system_that_is_not_up_is_started_once(
    paths: Paths, service: Any, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    session = Session(paths)
    starts = 0

    async def start() -> None:
        nonlocal starts
        starts += 1
        await nursery.start(serve)

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        async with open_service(service, at=paths.apiserver_socket):
            task_status.started()
            await trio.sleep_forever()

    monkeypatch.setattr(session, "ensure_running", start)
    async with session.containers() as containers:
        await containers.get("web")
    async with session.containers():
        pass
    assert starts == 1


async def test_a_start_that_does_not_help_is_an_error(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(paths)
    monkeypatch.setattr(session, "ensure_running", trio.lowlevel.checkpoint)
    with pytest.raises(PeerGone) as caught:
        async with session.containers():
            pass
    assert caught.value.fate is Fate.REFUSED


async def test_an_error_in_the_block_is_not_taken_for_a_failed_connection(
    paths: Paths, service: Any
) -> None:
    async with open_service(service, at=paths.apiserver_socket):
        with pytest.raises(NotFound):
            async with Session(paths).containers() as containers:
                await containers.get("nobody")
        with pytest.raises(PeerGone):
            async with Session(paths).containers():
                raise PeerGone("of another connection", fate=Fate.REFUSED)


async def test_a_service_that_never_answers_is_given_up(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.cli.session.CONNECTING", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(paths.apiserver_socket))
        listener.listen()
        with pytest.raises(DeadlineExceeded):
            async with Session(paths).containers():
                pass


def test_the_start_of_a_system_is_said(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    started: list[Paths] = []

    async def start(at: Paths) -> bool:
        started.append(at)
        return True

    monkeypatch.setattr("container.launcher.boot.ensure_running", start)
    assert main(["list"], Session(paths)) == 1
    assert started == [paths]
    first, second, *_ = capfd.readouterr().err.splitlines()
    assert first == f"container: starting the system (logs in {paths.logs})"
    assert second == f"container: nobody listens at {paths.apiserver_socket}"


def test_a_run_directory_of_another_user_is_refused_in_one_sentence(
    paths: Paths, capfd: pytest.CaptureFixture[str]
) -> None:
    paths.run.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(paths.run, 1, 1)
    assert main(["run", "--rm", "demo"], Session(paths)) == 125
    err = capfd.readouterr().err
    assert err.count("container: ") == 1
    assert str(paths.run) in err


@pytest.mark.parametrize("words", [("system", "status"), ("system", "stop"), ("system", "version")])
def test_looking_at_the_system_does_not_start_it(
    paths: Paths, words: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    main(list(words), Session(paths))
    said = capfd.readouterr()
    assert "starting" not in said.err
    assert "does not run" in said.out + said.err
    assert not list(paths.run.iterdir())


def test_descriptors_cross_a_real_connection(
    paths: Paths, service: Any, session: Any, run: Callable[..., Any]
) -> None:
    """The descriptors that a process gets are ours, and none is left open here."""
    real = Session(paths)

    async def attach() -> None:
        from container.cli.plumbing import Plumbing

        service.add("x", ContainerStatus.CREATED, keep_log=False)
        async with open_service(service, at=paths.apiserver_socket):
            with Plumbing(interactive=True, terminal=False, logged=False) as plumbing:
                async with real.containers() as containers:
                    with pytest.raises(ContainerError):  # a fake endpoint can't be sent
                        await containers.bootstrap("x", plumbing.stdio)

    trio.run(attach)
    got = service.sandboxes["x"].processes["init"].stdio
    assert [os.fstat(fd).st_ino for fd in got] == [os.fstat(fd).st_ino for fd in (0, 1, 2)]
