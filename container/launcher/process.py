"""The process `container-launcher`: one per run directory, parent of all processes of a system."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import define

from container.ipc import (
    ContainerError,
    InvalidArgument,
    InvalidState,
    Unavailable,
    open_service,
)
from container.ipc.spawning.offspring import name_process
from container.process import Context, become_subreaper, run_process

if TYPE_CHECKING:
    from container.launcher.rundir import Inode
    from container.launcher.service import LauncherService
    from container.storage.locks import FileLock
    from container.storage.paths import Paths

LOCK_BOUND = 30.0
"""Seconds to wait for a launcher that is shutting down."""
REPLY_BOUND = 2.0
"""Seconds for the last replies to leave."""


@define
class Options:
    """What a launcher is told on its command line."""

    owner: int | None = None
    ready: int | None = None
    units: Path | None = None
    systemd: bool = False

    def tell(self, word: dict[str, object]) -> None:
        """Tell who started this launcher how that went, once.

        Raises:
            Unavailable: the starter is gone, so that this launcher is not wanted any more.
        """
        fd, self.ready = self.ready, None
        if fd is None:
            return
        try:
            os.write(fd, json.dumps(word).encode())
        except BrokenPipeError:
            raise Unavailable("who started the launcher did not wait for it") from None
        finally:
            os.close(fd)


async def serve(context: Context) -> None:
    """Hold the sockets of named services, and start each on its first connection.

    --owner-fd N (a socket) makes the system private: the end of file on it stops the system and its
    containers. --ready-fd N (a pipe) is told in JSON that the launcher is up, or why it is not.
    --units FOLDER has other unit files. --systemd: systemd starts this process and the named
    services, has handed over the launcher's sockets, and keeps descriptors for it.
    """
    options = _options(context.arguments)
    try:
        await _launch(context, options)
    except ContainerError as error:
        options.tell({"code": error.code.value, "message": error.message, "hint": error.hint})
        raise


async def _launch(context: Context, options: Options) -> None:
    from container.launcher.rundir import make_root, prepare_run_directory, sweep_sockets
    from container.launcher.service import LauncherService
    from container.launcher.units import UNITS, load_units

    paths = context.paths
    units = () if options.systemd else load_units(options.units or UNITS)
    prepare_run_directory(paths.run)
    make_root(paths.root)
    # Not given up before the process is gone: who waits for the lock waits for all of it.
    (await _sole(paths, activated=options.systemd)).keep()
    sweep_sockets(paths.run / "runtime")
    with contextlib.ExitStack() as sockets:
        become_subreaper()
        owner = None if options.owner is None else sockets.enter_context(_taken(options.owner))
        if options.systemd:
            listener, door = (sockets.enter_context(one) for one in _activated(context))
            own: dict[Path, Inode] = {}
        else:
            (listener, door), own = _bound(paths, sockets)
        service = LauncherService(
            paths,
            units=units,
            listener=listener,
            door=door,
            owner=owner,
            preload=os.environ.get("CONTAINER_NO_ZYGOTE") != "1",
            notifier=context.notifier if options.systemd else None,
            stored=context.kept,
        )
        service.own_sockets |= own
        try:
            async with open_service(service, at=listener):
                async with trio.open_nursery() as nursery:
                    if owner is not None:
                        nursery.start_soon(_end_with, owner, service)
                    options.tell({"ready": True})
                    await context.ready()
                    await service.shut_down.wait()
                    with trio.move_on_after(REPLY_BOUND):
                        await service.wait_told()
                    nursery.cancel_scope.cancel()
        finally:
            service.hide()


def _bound(
    paths: Paths, sockets: contextlib.ExitStack
) -> tuple[tuple[socket.socket, socket.socket], dict[Path, Inode]]:
    """Return the launcher's sockets and the door, bound by us, and what identifies them."""
    from container.launcher.rundir import bind_listener

    listener, inode = bind_listener(paths.launcher_socket, listen=False)
    sockets.enter_context(listener)
    door, door_inode = bind_listener(paths.cli_socket)
    sockets.enter_context(door)
    return (listener, door), {paths.launcher_socket: inode, paths.cli_socket: door_inode}


def _activated(context: Context) -> tuple[socket.socket, socket.socket]:
    """Return the launcher's socket and the door as systemd handed them over, in any order.

    Raises:
        InvalidArgument: one is missing.
    """
    from container.activation import as_listener

    found: dict[str, socket.socket] = {}
    if context.listener is not None:
        found[context.listener.getsockname()] = context.listener
        context.listener = None
    for name in ("launcher", "cli"):
        given = context.kept.pop(name, None)
        if given is not None and (other := as_listener(given)) is not None:
            found[other.getsockname()] = other
    paths = context.paths
    try:
        return found[str(paths.launcher_socket)], found[str(paths.cli_socket)]
    except KeyError as missing:
        raise InvalidArgument(
            f"systemd handed over no socket at {missing.args[0]}",
            hint="--systemd is for the unit files that `container system install` writes",
        ) from None


async def _end_with(owner: socket.socket, service: LauncherService) -> None:
    """Shut the whole system down when its owner is gone."""
    while True:
        await trio.lowlevel.wait_readable(owner)
        try:
            if not owner.recv(64, socket.MSG_DONTWAIT):
                break
        except BlockingIOError:
            continue
        except OSError:
            break
    await service.shutdown(stop_containers=True)


async def _sole(paths: Paths, *, activated: bool) -> FileLock:
    """Return the lock of the run directory, when a launcher that is going has gone.

    Args:
        paths: Of the system.
        activated: Somebody listens at the launcher's socket in any case: systemd.

    Raises:
        InvalidState: another launcher works here.
    """
    from container.launcher.rundir import somebody_listens
    from container.storage.locks import lock, try_lock

    held = try_lock(paths.run / "launcher.lock")
    if held is None and (activated or not somebody_listens(paths.launcher_socket)):
        with trio.move_on_after(LOCK_BOUND):
            held = await lock(paths.run / "launcher.lock")
    if held is None:
        raise InvalidState(f"a launcher works in {paths.run} already")
    return held


def _taken(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        return socket.socket(fileno=fd)
    except OSError as error:
        raise InvalidArgument(f"descriptor {fd} is no socket: {error.strerror}") from error


def _options(arguments: list[str]) -> Options:
    options = Options()
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if name == "--systemd":
            options.systemd = True
            continue
        if name not in ("--owner-fd", "--ready-fd", "--units"):
            raise InvalidArgument(f"there is no option {name}")
        if not rest:
            raise InvalidArgument(f"{name} needs a value")
        value = rest.pop(0)
        if name == "--units":
            options.units = Path(value)
            continue
        if not value.isascii() or not value.isdigit():
            raise InvalidArgument(f'{name} needs the number of a descriptor, not "{value}"')
        if name == "--owner-fd":
            options.owner = int(value)
        else:
            options.ready = int(value)
            os.set_inheritable(options.ready, False)
    return options


def main() -> int:
    """Run the process."""
    name_process("launcher")
    return run_process("container-launcher", serve)


if __name__ == "__main__":
    sys.exit(main())
