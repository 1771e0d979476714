"""The control group of one container, on cgroup v1, hybrid and v2.

The OCI runtime makes the group and puts the limits in; what is here reads usage, sees that memory
ran out, freezes and thaws, kills what is left, and removes the group. The group's path is absolute
and has no parent of ours: a parent that the last container removes while the next one is being made
in it is a race, and nesting under the caller's own group would hang containers on a terminal's
life.

In the hybrid layout (v1 controllers, and a v2 hierarchy that has none of them) v1 is what counts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from attrs import frozen

from container.contracts.runtime import SandboxStatistics

MOUNT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""v1 says "no limit" with a number near 2^63, rounded to pages."""
_FREEZE_SECONDS = 2.0
"""For all processes of a group to stand still; one that the disk holds can take long."""
_FREEZE_TRIES = 10
"""Looks before all are let go for a moment."""


def cgroup_path(container_id: str) -> str:
    """Return the path of a container's group, as the OCI runtime wants it (`linux.cgroupsPath`)."""
    return f"/container-{container_id}"


class ControlGroup(ABC):
    """What the runtime helper needs of a group; a double implements it in memory."""

    @abstractmethod
    def usage(self) -> SandboxStatistics | None:
        """Return usage, or None when the group is gone. Blocking."""
        ...

    @abstractmethod
    def out_of_memory_kills(self) -> int:
        """Return how many processes the kernel has killed for want of memory. Blocking."""
        ...

    @abstractmethod
    def freeze(self) -> None:
        """Let none of its processes run until `thaw`. Blocks up to two seconds.

        Raises:
            TimeoutError: not all stand still in time; it was thawed again.
            OSError: there is no group, or none that can be frozen.
        """
        ...

    @abstractmethod
    def thaw(self) -> None:
        """Let a frozen group run; one that is not frozen, or gone, is no error. Blocking."""
        ...

    @abstractmethod
    def frozen(self) -> bool:
        """Return whether it is frozen, or about to be. Blocking."""
        ...

    @abstractmethod
    def kill(self) -> None:
        """Send SIGKILL to all that is in it. Blocking, does not wait for their end."""
        ...

    @abstractmethod
    def kill_strays(self, known: Collection[int]) -> None:
        """Send SIGKILL to what was brought into it from outside and is not known. Blocking.

        Args:
            known: Such processes that are to live. What they have forked lives too.
        """
        ...

    @abstractmethod
    def remove(self) -> bool:
        """Remove the group in every hierarchy; return whether it is gone. Blocks under a second."""
        ...


@frozen
class CgroupFolders(ControlGroup):
    """A group in the real hierarchies.

    Args:
        path: Of the group, absolute within each hierarchy.
        mount: Where the hierarchies are mounted.
    """

    path: str
    mount: Path = MOUNT

    @property
    def _unified(self) -> bool:
        return (self.mount / "cgroup.controllers").exists()

    def _folder(self, controller: str = "") -> Path:
        root = self.mount if self._unified else self.mount / controller
        return root / self.path.lstrip("/")

    def folders(self) -> list[Path]:
        """Return the group's folder in every hierarchy where it exists."""
        candidates = [self._folder()] if self._unified else []
        if not self._unified and self.mount.is_dir():
            with os.scandir(self.mount) as entries:
                # `cpu` may be a link to `cpu,cpuacct`: one folder, to be seen once.
                real = [entry.path for entry in entries if not entry.is_symlink()]
            candidates = [Path(f"{entry}/{self.path.lstrip('/')}") for entry in real]
        return [folder for folder in candidates if os.path.isdir(folder)]

    def usage(self) -> SandboxStatistics | None:
        try:
            return self._usage_unified() if self._unified else self._usage_v1()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return None
            raise

    def _usage_unified(self) -> SandboxStatistics:
        folder = self._folder()
        memory = _number(folder / "memory.current")
        inactive = _keyed(folder / "memory.stat").get("inactive_file", 0)
        read, written = 0, 0
        for line in _text(folder / "io.stat").splitlines():
            fields = dict(part.split("=", 1) for part in line.split()[1:] if "=" in part)
            read += int(fields.get("rbytes", 0))
            written += int(fields.get("wbytes", 0))
        return SandboxStatistics(
            memory_bytes=max(0, memory - inactive),
            memory_limit_bytes=_limit(folder / "memory.max"),
            cpu_nanoseconds=_keyed(folder / "cpu.stat")["usage_usec"] * 1000,
            pids=_number(folder / "pids.current"),
            read_bytes=read,
            written_bytes=written,
        )

    def _usage_v1(self) -> SandboxStatistics:
        memory = self._folder("memory")
        used = _number(memory / "memory.usage_in_bytes")
        inactive = _keyed(memory / "memory.stat").get("total_inactive_file", 0)
        read, written = 0, 0
        for line in _text(self._folder("blkio") / "blkio.throttle.io_service_bytes").splitlines():
            parts = line.split()
            if len(parts) == 3 and parts[1] == "Read":
                read += int(parts[2])
            elif len(parts) == 3 and parts[1] == "Write":
                written += int(parts[2])
        return SandboxStatistics(
            memory_bytes=max(0, used - inactive),
            memory_limit_bytes=_limit(memory / "memory.limit_in_bytes"),
            cpu_nanoseconds=_number(self._folder("cpuacct") / "cpuacct.usage"),
            pids=_number(self._folder("pids") / "pids.current"),
            read_bytes=read,
            written_bytes=written,
        )

    def out_of_memory_kills(self) -> int:
        file = (
            self._folder() / "memory.events"
            if self._unified
            else self._folder("memory") / "memory.oom_control"
        )
        return _keyed(file).get("oom_kill", 0)

    def _freezer(self) -> tuple[Path, str, str]:
        """Return the file that freezes, and what it says for frozen and thawed.

        Source: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst.
        """
        if not self._unified and (self.mount / "freezer").is_dir():
            return self._folder("freezer") / "freezer.state", "FROZEN", "THAWED"
        return self._folder("" if self._unified else "unified") / "cgroup.freeze", "1", "0"

    def freeze(self) -> None:
        file, frozen, thawed = self._freezer()
        deadline = time.monotonic() + _FREEZE_SECONDS
        tries = 0
        file.write_text(frozen)
        while not self._stands_still(file):
            if time.monotonic() > deadline:
                self.thaw()
                raise TimeoutError(f"{file.parent.name} does not stand still")
            tries += 1
            if tries % _FREEZE_TRIES == 0:
                # A thread that executes a program waits for the others of its process to end, and
                # these can't while they are frozen: all are let go for a moment.
                file.write_text(thawed)
            # v1 tells nobody when it is done, and must be asked again for what was forked since.
            time.sleep(0.002)
            file.write_text(frozen)

    def _stands_still(self, file: Path) -> bool:
        if file.name == "freezer.state":
            return file.read_text().strip() == "FROZEN"
        return _keyed(file.with_name("cgroup.events")).get("frozen") == 1

    def thaw(self) -> None:
        file, _, thawed = self._freezer()
        try:
            file.write_text(thawed)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    def frozen(self) -> bool:
        file, _, thawed = self._freezer()
        return _text(file).strip() not in ("", thawed)

    def kill(self) -> None:
        for folder in self.folders():
            try:
                (folder / "cgroup.kill").write_text("1")
                return
            except OSError:
                pass
        for folder in self.folders():
            pids = _text(folder / "cgroup.procs").split()
            for pid in map(int, pids):
                if pid <= 0:
                    continue
                try:
                    # No pidfd helps here: the number is read and used while the group holds it.
                    os.kill(pid, 9)
                except ProcessLookupError:
                    pass
            if pids:
                return

    def kill_strays(self, known: Collection[int]) -> None:
        for folder in self.folders():
            inside = set(map(int, _text(folder / "cgroup.procs").split()))
            for pid in inside - set(known):
                # Who was forked inside has a parent inside, for ever: orphans there go to the first
                # process.
                if _parent(pid) not in inside:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)
            if inside:
                return

    def remove(self) -> bool:
        deadline = time.monotonic() + 0.5
        while left := [folder for folder in self.folders() if not _remove_tree(folder)]:
            if time.monotonic() > deadline:
                return not any(map(os.path.isdir, left))
            # The kernel takes killed processes out a moment after their end was reported, and
            # tells nobody when a group can be removed.
            time.sleep(0.002)
        return True


def _parent(pid: int) -> int | None:
    text = _text(Path(f"/proc/{pid}/stat"))
    return int(text[text.rindex(")") + 2 :].split()[1]) if text else None


def _remove_tree(folder: Path) -> bool:
    """Remove a group and its children; return whether it is gone."""
    if _remove_folder(folder):
        return True
    # It has children, or processes. Children first; one that is gone meanwhile is passed over.
    outcomes = [_remove_folder(path) for path, _, _ in os.walk(folder, topdown=False)]
    return all(outcomes)


def _remove_folder(folder: str | Path) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        return False
    return True


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ESRCH):
            return ""
        raise


def _number(file: Path) -> int:
    return int(file.read_text())


def _limit(file: Path) -> int | None:
    text = _text(file).strip()
    if not text or text == "max":
        return None
    value = int(text)
    return value if value < _UNLIMITED else None


def _keyed(file: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in _text(file).splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdigit():
            found[name] = int(value)
    return found
