"""The process of one runtime helper: `container-runtime start [--root FOLDER] [--id] ID`."""

from __future__ import annotations

import logging
import re
import sys
from functools import partial
from pathlib import Path

import trio
from attrs import frozen

from container.contracts.launcher import Launcher, Restart, ServiceUnit
from container.contracts.runtime import Sandbox
from container.ipc import InvalidArgument, open_service
from container.process import Context, run_process
from container.runtime import kernel
from container.runtime.gate import RuntimeGate
from container.runtime.keeping import LauncherKeeper
from container.runtime.registration import stay_registered
from container.runtime.service import SandboxService

ENTRY = "container.runtime.process:main"
_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}")
_log = logging.getLogger(__name__)


@frozen
class Options:
    """What the command line says."""

    container_id: str
    folder: Path | None = None
    """The container's folder; None takes the one of this system."""


def parse(arguments: list[str]) -> Options:
    """Read the command line.

    Raises:
        InvalidArgument: it is wrong.
    """
    rest = arguments[1:] if arguments[:1] == ["start"] else list(arguments)
    folder: Path | None = None
    container_id = ""
    while rest:
        word = rest.pop(0)
        if word in ("--root", "--id"):
            if not rest:
                raise InvalidArgument(f"{word} needs a value")
            value = rest.pop(0)
            if word == "--root":
                folder = Path(value).absolute()
                continue
            word = value
        if container_id or not _ID.fullmatch(word):
            raise InvalidArgument(
                f"{word!r} is no container id", hint="container-runtime start [--root FOLDER] ID"
            )
        container_id = word
    if not container_id:
        raise InvalidArgument("no container id is given", hint="container-runtime start ID")
    return Options(container_id, folder)


def unit(container_id: str, command: tuple[str, ...]) -> ServiceUnit:
    """Return the unit of this helper, equal to the one that the API server registered."""
    return ServiceUnit(
        name=f"runtime.{container_id}",
        command=command,
        entry=ENTRY,
        description=f"runtime helper of container {container_id}",
        listen=f"runtime/{container_id}.sock",
        restart=Restart.NO,
        outlives_launcher=True,
    )


def hide_mounts() -> None:
    """Give this process mounts of its own: whatever it mounts goes with it, however it ends.

    Mounts that others make later still show up here. Does nothing where it is not allowed.
    """
    try:
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount(None, Path("/"), None, kernel.MS_REC | kernel.MS_SLAVE, "")
    except OSError as error:
        _log.warning("mounts can't be kept apart: %s", error.strerror)


async def serve(context: Context) -> int | None:
    """Serve one container until it is shut down."""
    options = parse(context.arguments)
    if context.listener is None:
        raise InvalidArgument(
            "no listening socket was handed over", hint="container-launcher starts this program"
        )
    hide_mounts()
    folder = options.folder or context.paths.containers / options.container_id
    keeper = LauncherKeeper(unit(options.container_id, ()).name)
    service = SandboxService(folder, options.container_id, keeper=keeper, kept=context.kept)
    try:
        async with trio.open_nursery() as nursery:
            # Before the service: an earlier helper's processes may have to be asked for there.
            nursery.start_soon(
                *(_stay, context, options.container_id, keeper, service, nursery.cancel_scope)
            )
            async with service, open_service(RuntimeGate(Sandbox, service), at=context.listener):
                await service.ended.wait()
            nursery.cancel_scope.cancel()
    finally:
        keeper.close()
    return None


async def _stay(
    context: Context,
    container_id: str,
    keeper: LauncherKeeper,
    service: SandboxService,
    scope: trio.CancelScope,
) -> None:
    socket = context.paths.launcher_socket
    if context.owned:
        # A private system ends with its owner, and its containers with it.
        try:
            async with Launcher.connect(socket) as launcher:
                await keeper.serve(launcher)
        finally:
            scope.cancel()
    assert context.listener is not None

    async def until_gone(launcher: Launcher) -> None:
        service.launcher_came()
        await keeper.serve(launcher)

    await stay_registered(
        partial(Launcher.connect, socket),
        unit(container_id, tuple(sys.argv)),
        context.listener,
        socket,
        until_gone=until_gone,
    )


def main() -> int:
    """Run the process."""
    return run_process("container-runtime", serve)
