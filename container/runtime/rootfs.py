"""The root of a container: an overlay of its image's layers under a folder of its own.

Layers are never written; what the container changes is in `upper`. `RootFilesystem` is the whole
interface, so that a test needs no root: a double hands out a plain folder.
"""

from __future__ import annotations

import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import trio

from container.ipc import ContainerError, DataLoss, Unavailable, Unsupported
from container.runtime import kernel

_OPTIONS_MAX = os.sysconf("SC_PAGE_SIZE") - 1
"""mount(2) copies one page of options."""


class RootFilesystem(ABC):
    """Makes and removes the root of one container."""

    @abstractmethod
    async def mount(self, layers: Sequence[str], *, volatile: bool) -> Path:
        """Mount the layers (topmost first) and return the root. All or nothing, cancellation
        included.

        Args:
            layers: Absolute paths, topmost first, as overlayfs wants them.
            volatile: Skip all syncing: right for a container that does not outlive its run.

        Raises:
            DataLoss: a layer is not there.
            Unavailable: no space is left, or the kernel refused.
            Unsupported: we may not mount.
        """
        ...

    @abstractmethod
    async def unmount(self) -> None:
        """Unmount the root; the container's changes stay. Not mounted is no error."""
        ...


class OverlayRoot(RootFilesystem):
    """The real one.

    Args:
        folder: Of this container; `rootfs`, `upper` and `work` are made in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def root(self) -> Path:
        """Where the root is mounted."""
        return self._folder / "rootfs"

    async def mount(self, layers: Sequence[str], *, volatile: bool) -> Path:
        with trio.CancelScope(shield=True):  # two quick system calls: not worth being cut in half
            await trio.to_thread.run_sync(self._mount, tuple(layers), volatile)
        return self.root

    async def unmount(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._unmount)

    def _mount(self, layers: tuple[str, ...], volatile: bool) -> None:
        self._unmount()
        upper, work = self._folder / "upper", self._folder / "work"
        try:
            # What a crash left in `work`, and the mark of a volatile mount, would refuse us.
            shutil.rmtree(work, ignore_errors=True)
            for folder in (self.root, upper, work):
                folder.mkdir(parents=True, exist_ok=True)
            upper.chmod(0o755)
            with ExitStack() as stack:
                if not layers:
                    empty = self._folder / "empty"
                    empty.mkdir(exist_ok=True)
                    layers = (str(empty),)
                options = overlay_options(layers, upper, work, stack)
                if volatile:
                    options += ",volatile"
                kernel.mount("overlay", self.root, "overlay", kernel.MS_NODEV, options)
        except OSError as error:
            raise _explained(error, layers) from error

    def _unmount(self) -> None:
        for flags in (0, kernel.MNT_DETACH):
            try:
                while True:
                    kernel.unmount(self.root, flags)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return  # not a mount point
                if error.errno != errno.EBUSY or flags:
                    raise
                # Somebody looks into it from outside: let it go as soon as they leave.


def overlay_options(layers: Sequence[str], upper: Path, work: Path, stack: ExitStack) -> str:
    """Return the options of the overlay; descriptors that they name stay open as long as `stack`.

    Paths are used as they are, so that `mount` shows them. Where a path has a character with a
    meaning of its own, or where a hundred of them do not fit in a page, the layers are opened and
    named by `/proc/self/fd`: short, and free of such characters.
    """
    every = (*layers, str(upper), str(work))
    if not any(set(path) & set(",:\\") for path in every):
        plain = _options(layers, str(upper), str(work))
        if len(os.fsencode(plain)) + len(",volatile") <= _OPTIONS_MAX:
            return plain

    def by_descriptor(path: str) -> str:
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        return f"/proc/self/fd/{descriptor}"

    return _options(
        [by_descriptor(layer) for layer in layers],
        by_descriptor(str(upper)),
        by_descriptor(str(work)),
    )


def _options(layers: Sequence[str], upper: str, work: str) -> str:
    return f"lowerdir={':'.join(layers)},upperdir={upper},workdir={work}"


def _explained(error: OSError, layers: Sequence[str]) -> ContainerError:
    for layer in layers:
        if not os.path.isdir(layer):
            return DataLoss(
                f"a layer of the image is missing: {layer}", hint="load or pull the image again"
            )
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return Unavailable("no space is left for the container's root", hint="free some space")
        case errno.EPERM | errno.EACCES:
            return Unsupported(
                "the container's root can't be mounted without being root",
                hint="run it as root; containers of other users are not supported yet",
            )
        case errno.ENODEV:
            return Unsupported("this kernel has no overlay file system", hint="load module overlay")
        case _:
            return Unavailable(f"the container's root can't be mounted: {error.strerror}")
