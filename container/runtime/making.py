"""Making the processes of a container: the bundle, the OCI runtime's call, the terminal.

What each process needs of files is looked at from outside first, with the container's root as root.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath

import trio

from container.contracts.runtime import ProcessSpec, SandboxSpec
from container.ipc import ContainerError, InvalidArgument
from container.runtime.bundle import BundleFiles, configuration, process_configuration
from container.runtime.command import missing_command
from container.runtime.inside import InsideRoot
from container.runtime.kernel import Machine
from container.runtime.names_files import NamesFiles
from container.runtime.oci import ContainerProcess, OciRuntime, ProcessStdio
from container.runtime.processes import ManagedProcess
from container.runtime.terminal import console_socket
from container.runtime.user import resolve_user

START_SECONDS = 1.0
"""From the end of a process to giving up on an OCI runtime that starts it."""

BEGIN_SECONDS = 0.2
LOOK_SECONDS = 0.002
Make = Callable[[Path, ProcessStdio, str | None], Awaitable[ContainerProcess]]
"""Have the OCI runtime make a process: bundle, descriptors, name of the terminal's socket."""


def write_bundle(
    files: BundleFiles,
    names: NamesFiles,
    machine: Machine,
    spec: SandboxSpec,
    root: Path,
    network: str | None,
) -> None:
    """Write the bundle of a container whose root is mounted. Blocking.

    Args:
        files: The bundle's.
        names: Files of names, which are written too.
        machine: Where it will run.
        spec: The container.
        root: Where its root is mounted.
        network: Path of its network namespace; None is the host's.

    Raises:
        NotFound: a bind source, the user or the command is not there.
        InvalidArgument: the command can't be executed, or a mount is refused.
    """
    process = spec.process
    with InsideRoot.open(root) as inside:
        user = resolve_user(process.user, inside)
        whole = configuration(spec, user, root, names.write(spec), machine, network)
        # Where a mount of the user's may bring the folder or the command, we can't look.
        if not spec.mounts and (error := missing_command(process, inside)):
            raise error
        if not any(
            PurePosixPath(process.working_directory).is_relative_to(mount.destination)
            for mount in spec.mounts
        ):
            _make_working_directory(inside, process.working_directory, user.uid, user.gid)
    files.write(whole)


def resolve_further(spec: ProcessSpec, root: Path) -> dict[str, object]:
    """Return the OCI form of a further process, resolved in what the first one sees. Blocking."""
    with InsideRoot.open(root) as inside:
        user = resolve_user(spec.user, inside)
        if error := missing_command(spec, inside):
            raise error
        if inside.stat(spec.working_directory) is None:
            raise InvalidArgument(
                f"working directory {spec.working_directory!r} is not in the container"
            )
    return process_configuration(spec, user)


async def make_process(process: ManagedProcess, folder: Path, make: Make) -> None:
    """Have the OCI runtime make a process, and take its terminal over if it has one.

    When this is done, what the next helper would need is kept; but for its pidfd, which may be on
    its way.
    """
    plumbing = process.plumbing
    process.keep()  # while the OCI runtime works
    if not process.spec.terminal:
        process.handle = await make(folder, plumbing.stdio, None)
    else:
        name = f"tty-{process.number}"
        async with console_socket(folder, name) as console:
            process.handle = await make(folder, plumbing.stdio, name)
            # It is in the socket's queue by now.
            plumbing.terminal_arrived(await console.receive())
        process.keep()
    plumbing.made()
    if plumbing.descriptors():
        await process.keeper.flush()
    process.keep()


async def has_begun(runtime: OciRuntime, first: ContainerProcess) -> bool:
    """Return whether a first process runs the container's command, or has; wait for it a moment.

    Told to run, it does so at once, but nothing tells when. Until then a signal would meet the OCI
    runtime's own program, which ends of it as it likes, and the group could not be frozen.
    """
    with trio.move_on_after(BEGIN_SECONDS):
        while not runtime.has_begun(first):  # noqa: ASYNC110
            await trio.sleep(LOOK_SECONDS)
        return True
    return False


async def unless_ended(process: ManagedProcess, work: Awaitable[None]) -> bool:
    """Await some work, but hardly longer than the process lives; return whether it was done."""
    done = False
    failure: ContainerError | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await process.exited.wait()
            # It may have been started and have ended before the work could say so.
            await trio.sleep(START_SECONDS)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await work
            done = True
        except ContainerError as error:
            failure = error  # raised outside: the nursery would wrap it in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return done


def _make_working_directory(inside: InsideRoot, path: str, user: int, group: int) -> None:
    try:
        inside.make_folder(path, user, group)
    except NotADirectoryError:
        raise InvalidArgument(f"working directory {path!r} is not a folder") from None
    except OSError as error:
        raise InvalidArgument(
            f"working directory {path!r} can't be used: {error.strerror}"
        ) from error
