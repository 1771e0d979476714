"""`repair`: do for one finding what is safe, and what its `remedy` says.

Nothing that a person made or may want is deleted: what goes is what was never acknowledged, what is
empty, and what nothing can reach. Each step looks again before it acts.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import stat
from pathlib import Path

import trio

from container.audit.finding import Finding, Remedy
from container.audit.machine import group_folders, look, start_time
from container.audit.networks import unplug
from container.audit.services import connected
from container.contracts.images import Images
from container.contracts.launcher import Launcher
from container.contracts.runtime import SandboxGate
from container.contracts.stored import read_container
from container.ipc import ContainerError, InvalidState, Unavailable
from container.storage.blobs import Blobs
from container.storage.durable import sync_folder
from container.storage.locks import try_lock
from container.storage.paths import Paths

END_SECONDS = 10.0
_MNT_DETACH = 2


async def repair(paths: Paths, finding: Finding) -> str | None:
    """Do what is to be done about a finding; return what was done, None for nothing.

    Cancellation may leave it half done; it can be done again.

    Raises:
        ContainerError: it can't be done, or not now.
    """
    try:
        match finding.action:
            case Remedy.PERSON | Remedy.START:
                await trio.lowlevel.checkpoint()
                return None
            case Remedy.REMOVE:
                return await trio.to_thread.run_sync(_remove, paths, Path(finding.subject))
            case Remedy.KILL:
                return await _kill(finding)
            case Remedy.UNMOUNT:
                return await trio.to_thread.run_sync(_unmount, finding.target)
            case Remedy.REMOVE_GROUP:
                return await trio.to_thread.run_sync(_remove_group, finding.target)
            case Remedy.SET_ASIDE:
                return await trio.to_thread.run_sync(_set_aside, paths, finding.target)
            case Remedy.RELEASE:
                return await _release(paths, finding.target)
            case Remedy.HOLD:
                return await _hold(paths, finding.target)
            case Remedy.SWEEP:
                return await _sweep(paths)
            case Remedy.AWAKEN:
                async with connected(SandboxGate, paths.runtime_socket(finding.subject)) as gate:
                    (await gate.open(("state",))).close()
                return "its helper was started"
            case Remedy.DISMISS:
                async with connected(Launcher, paths.launcher_socket) as launcher:
                    await launcher.remove(f"runtime.{finding.target}")
                return "the launcher ended it"
            case Remedy.UNPLUG:
                return await trio.to_thread.run_sync(unplug, paths, finding.target)
    except OSError as error:
        raise Unavailable(f"{finding.subject} can't be mended: {error.strerror}") from error


def _remove(paths: Paths, path: Path) -> str:
    """Remove a leftover; the owner of its folder must not be at work."""
    if path.is_relative_to(paths.images):
        lock = try_lock(paths.images / "lock")
        if lock is None:
            raise InvalidState("the images helper is at work, and sweeps it itself")
        with lock:
            return _delete(path)
    if look(paths).launcher_lock:
        raise InvalidState("the system runs, and may need it", hint="stop the system first")
    return _delete(path)


def _delete(path: Path) -> str:
    if stat.S_ISDIR(path.lstat().st_mode):
        table = Path("/proc/self/mountinfo").read_text()
        points = [line.split(" ")[4] for line in table.splitlines()]
        if any(point.startswith(f"{path}/") for point in points):
            raise InvalidState(f"something is mounted below {path}", hint="unmount it first")
        shutil.rmtree(path)
    else:
        path.unlink()
    sync_folder(path.parent)
    return "it was removed"


async def _kill(finding: Finding) -> str:
    try:
        process = os.pidfd_open(finding.pid)
    except ProcessLookupError:
        return "it has ended"
    try:
        # The pidfd first: what it names can't change any more while we look.
        if start_time(finding.pid) != finding.started:
            return "it has ended"
        signal.pidfd_send_signal(process, signal.SIGKILL)
        with trio.move_on_after(END_SECONDS) as bound:
            await trio.lowlevel.wait_readable(process)
        if bound.cancelled_caught:
            raise Unavailable(f"process {finding.pid} was killed and does not end")
    finally:
        trio.lowlevel.notify_closing(process)
        os.close(process)
    return "it was killed"


def _unmount(point: str) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(point), _MNT_DETACH) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), point)
    return "it was unmounted"


def _remove_group(container_id: str) -> str:
    for folder in group_folders(container_id):
        for inner, _, _ in os.walk(folder, topdown=False):
            os.rmdir(inner)
    return "the group was removed"


def _set_aside(paths: Paths, digest: str) -> str:
    blobs = Blobs(paths.images / "blobs", paths.images / "ingest")
    return f"it is {blobs.set_aside(digest)} now"


async def _release(paths: Paths, holder: str) -> str:
    if (paths.containers / holder).is_dir():
        raise InvalidState(f"there is a container {holder} by now")
    lock = await trio.to_thread.run_sync(try_lock, paths.images / "lock")
    if lock is None:
        async with connected(Images, paths.images_socket) as images:
            await images.release(holder)
    else:
        with lock:
            for link in (paths.images / "holders").iterdir():
                if link.name.rpartition(".")[0] == holder:
                    link.unlink()
            sync_folder(paths.images / "holders")
    return "it was released"


async def _hold(paths: Paths, container_id: str) -> str:
    container = await trio.to_thread.run_sync(read_container, paths.containers / container_id)
    name, _, tag = container.image.rpartition(":")
    reference = f"{name if '/' not in tag else container.image}@{container.image_digest}"
    async with connected(Images, paths.images_socket) as images:
        await images.prepare(reference, container_id, container.platform)
    return "its image is held again"


async def _sweep(paths: Paths) -> str | None:
    try:
        async with connected(Images, paths.images_socket) as images:
            freed = await images.sweep()
    except ContainerError as error:
        raise Unavailable(
            f"the images helper can't be asked: {error.message}", hint="start the system first"
        ) from error
    return f"{freed} bytes were freed" if freed else "it was removed already"
