"""The driver of `runc` and `crun`, by their command line.

Three things it takes care of. The container's own descriptors are the runtime's stdin, stdout and
stderr, so that nothing is copied; the runtime's errors go to a log file of the call instead. Exit
statuses are ours to read, because this process is a subreaper. And two calls are saved where it is
safe: `runc start` only reads one byte from the FIFO on which the container's process waits, and
`runc delete` of a container whose processes are gone only removes a folder and the control groups;
each costs as much as starting a large program, so we do them ourselves.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import trio

from container.ipc import DeadlineExceeded, NotFound, Unavailable, Unsupported
from container.process import become_subreaper
from container.runtime.cgroup import MOUNT, CgroupFolders, cgroup_path
from container.runtime.children import (
    AdoptedProcess,
    FoundProcess,
    is_half_made,
    reap_group,
    reap_half_made,
)
from container.runtime.oci import (
    AskForOrphan,
    ContainerProcess,
    OciRuntime,
    ProcessStdio,
    explained,
)
from container.runtime.unfinished import end_calls

_STRAY_SECONDS = 1.0
CALL_SECONDS = 60.0
"""A call of an OCI runtime that takes longer is killed."""
_KNOWN = ("runc", "crun")
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_log = logging.getLogger(__name__)
_WITHOUT_UNIFIED = 'umount "$0" && exec "$@"'


def find_runtime(name: str | None) -> Path:
    """Return the program of an OCI runtime: the named one, or the first that is there.

    Raises:
        Unsupported: none is installed, or not the named one; the hint says what to do.
    """
    search = os.pathsep.join(filter(None, (os.environ.get("PATH"), _SEARCH)))
    for candidate in (name,) if name else _KNOWN:
        if found := shutil.which(candidate, path=search):
            return Path(found)
    if name:
        raise Unsupported(
            f"OCI runtime {name!r} is not installed", hint="install it, or leave --runtime out"
        )
    raise Unsupported(
        "no OCI runtime is installed", hint="install runc or crun (for example: apt install runc)"
    )


class CommandLineRuntime(OciRuntime):
    """An OCI runtime that is a program.

    Args:
        program: Its path.
        state: Folder of its own state; belongs to one container.
    """

    def __init__(self, program: Path, state: Path) -> None:
        self.name = program.name
        self._is_runc = program.name == "runc"
        self._program = program
        self._state = state
        self._numbers = itertools.count(1)
        self._commands: dict[str, str] = {}
        self._made: list[AdoptedProcess] = []
        self._broken: set[int] = set()
        """Process groups of calls that failed: their orphans are ours to reap."""

    async def create(
        self, container: str, bundle: Path, stdio: ProcessStdio, console: str | None
    ) -> ContainerProcess:
        become_subreaper()
        configuration = json.loads((bundle / "config.json").read_text())
        self._commands[container] = configuration["process"]["args"][0]
        return await self._make_process(
            ["create", "--bundle", str(bundle)], container, [], bundle, stdio, console
        )

    async def execute(
        self,
        container: str,
        bundle: Path,
        process: dict[str, Any],
        stdio: ProcessStdio,
        console: str | None,
    ) -> ContainerProcess:
        become_subreaper()
        file = bundle / f"process-{next(self._numbers)}.json"
        file.write_text(json.dumps(process))
        try:
            return await self._make_process(
                ["exec", "--detach", "--process", str(file)],
                container,
                [],
                bundle,
                stdio,
                console,
                command=process["args"][0],
            )
        finally:
            file.unlink(missing_ok=True)

    async def _make_process(
        self,
        verb: Sequence[str],
        container: str,
        rest: Sequence[str],
        bundle: Path,
        stdio: ProcessStdio,
        console: str | None,
        command: str | None = None,
    ) -> ContainerProcess:
        pid_file = bundle / f"pid-{next(self._numbers)}"
        arguments = [*verb, "--pid-file", str(pid_file)]
        if console is not None:
            arguments += ["--console-socket", console]
        try:
            await self._call(
                [*arguments, container, *rest],
                folder=bundle,
                stdio=stdio,
                command=command or self._commands.get(container, container),
            )
            made = AdoptedProcess(int(pid_file.read_text()))
            self._made = [process for process in self._made if not process.reaped]
            self._made.append(made)
            return made
        finally:
            pid_file.unlink(missing_ok=True)

    async def start(self, container: str) -> None:
        fifo = self._state / container / "exec.fifo"
        gate = self._open_fifo(fifo)
        if gate is None:
            await self._call(["start", container], command=self._commands.get(container, container))
            return
        try:
            with trio.fail_after(CALL_SECONDS):
                await trio.lowlevel.wait_readable(gate)
            if not os.read(gate, 16):
                raise Unavailable("the container's first process ended before it was started")
        except trio.TooSlowError:
            raise DeadlineExceeded("the container's first process does not start") from None
        finally:
            trio.lowlevel.notify_closing(gate)
            os.close(gate)
        # As the runtime does it: a FIFO that is there means "created, not started".
        fifo.unlink(missing_ok=True)

    def _open_fifo(self, fifo: Path) -> int | None:
        if not self._is_runc:
            return None  # crun's has the same name, and is read by the other side
        try:
            return os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None

    async def pause(self, container: str) -> None:
        if self._program.name not in _KNOWN:
            await self._call(["pause", container], command=container)
            return
        # All that they do is to freeze the group, and their own state is read from it.
        try:
            await trio.to_thread.run_sync(CgroupFolders(cgroup_path(container)).freeze)
        except OSError as error:
            reason = error.strerror or "its processes do not stand still"
            raise Unavailable(f"the container can't be paused: {reason}") from error

    async def resume(self, container: str) -> None:
        if self._program.name not in _KNOWN:
            await self._call(["resume", container], command=container)
            return
        try:
            await trio.to_thread.run_sync(CgroupFolders(cgroup_path(container)).thaw)
        except OSError as error:
            raise Unavailable(f"the container can't be resumed: {error.strerror}") from error

    def find(
        self, pid: int, began: int, pidfd: int | None, orphan: AskForOrphan
    ) -> ContainerProcess:
        return FoundProcess(pid, began, pidfd, orphan)

    def has_begun(self, process: ContainerProcess) -> bool:
        return not is_half_made(process.pid)

    async def settle(self, container: str) -> None:
        if await trio.to_thread.run_sync(end_calls, self._state):
            _log.info("calls of the last helper of container %s were ended", container)

    async def delete(self, container: str) -> None:
        self._commands.pop(container, None)
        try:
            await self._delete(container)
        finally:
            if self._broken:
                await trio.to_thread.run_sync(self._reap_strays)

    async def _delete(self, container: str) -> None:
        state = self._state / container
        group = CgroupFolders(cgroup_path(container))

        def delete_ourselves() -> bool:
            if self._broken:
                # A call that was killed may have put a process there and not have noted it.
                group.kill()
            if not state.is_dir():
                return True
            if self._program.name not in _KNOWN or not group.remove():
                return False
            # The groups could be removed, so nothing runs in them: what is left is a folder.
            shutil.rmtree(state, ignore_errors=True)
            return True

        if await trio.to_thread.run_sync(delete_ourselves):
            return
        with contextlib.suppress(NotFound):
            await self._call(["delete", "--force", container], command=container)
        await trio.to_thread.run_sync(lambda: shutil.rmtree(state, ignore_errors=True))

    def _reap_strays(self) -> None:
        deadline = time.monotonic() + _STRAY_SECONDS
        broken, self._broken = self._broken, set[int]()
        known = {process.pid for process in self._made if not process.reaped}
        while True:
            broken = {group for group in broken if reap_group(group)}
            if not (reap_half_made(known) or broken) or time.monotonic() > deadline:
                return
            time.sleep(0.002)  # killed already; many processes have no one descriptor to wait on

    def _argv(self, arguments: Sequence[str], log: Path) -> list[str]:
        own = [
            str(self._program),
            *("--root", str(self._state), "--log", str(log), "--log-format", "json"),
            *arguments,
        ]
        unified = MOUNT / "unified"
        if self.name.startswith("crun") and unified.is_mount():
            # crun refuses a machine whose v2 hierarchy is mounted beside the v1 ones.
            private = ["unshare", "--mount", "--propagation", "slave"]
            return [*private, "sh", "-c", _WITHOUT_UNIFIED, str(unified), *own]
        return own

    async def _call(
        self,
        arguments: Sequence[str],
        *,
        command: str,
        folder: Path | None = None,
        stdio: ProcessStdio | None = None,
    ) -> None:
        folder = folder or self._state
        self._state.mkdir(parents=True, exist_ok=True)
        log = folder / f"oci-{next(self._numbers)}.log"
        null = subprocess.DEVNULL

        async def kill(process: trio.Process) -> None:
            # Half-made containers are deleted afterwards, so there is nothing to wait for gently.
            self._broken.add(process.pid)
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

        try:
            with trio.fail_after(CALL_SECONDS):
                result = await trio.run_process(
                    self._argv(arguments, log),
                    stdin=stdio.stdin if stdio else null,
                    stdout=stdio.stdout if stdio else null,
                    stderr=stdio.stderr if stdio else null,
                    check=False,
                    cwd=folder,
                    start_new_session=True,
                    deliver_cancel=kill,
                )
            if result.returncode != 0:
                raise explained(self.name, command, _last_error(log))
        except trio.TooSlowError:
            raise Unavailable(f"{self.name} did not answer within {CALL_SECONDS:g} s") from None
        except FileNotFoundError as error:
            raise Unsupported(
                f"{self._program} is gone", hint="install it again, or name another --runtime"
            ) from error
        finally:
            log.unlink(missing_ok=True)


def _last_error(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            fields = cast("dict[str, object]", record)
            if fields.get("level") in ("error", "fatal"):
                return str(fields.get("msg", ""))
    return lines[-1] if lines else ""
