"""An OCI runtime as the runtime helper sees it: the interface, and what an error of it means.

The driver of real programs is `command_line.py`; a double in `container.testing.oci` implements the
same interface in memory, and one conformance suite runs against all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from attrs import frozen

from container.ipc import ContainerError, InvalidArgument, NotFound, Unavailable

AskForOrphan = Callable[[int], Awaitable[int | None]]
"""Return the exit status of a process by its pid, 128+n for a signal; None if it is not known."""


@frozen
class ProcessStdio:
    """Three descriptors for a process, borrowed for the length of the call that gets them."""

    stdin: int
    stdout: int
    stderr: int


@frozen
class Ended:
    """How a process ended, as far as the kernel tells."""

    code: int | None = None
    """Its exit code; None for a signal, or when it can't be known."""
    signal: int | None = None


class ContainerProcess(ABC):
    """One process of a container, held by what never names another one (a pidfd)."""

    pid: int
    """In the host's pid namespace."""
    root: Path
    """Its root as it sees it, mounts included, while it lives."""

    @abstractmethod
    async def wait(self) -> Ended:
        """Return how it ended, once it has. May be cancelled, and called again."""
        ...

    @abstractmethod
    def send_signal(self, number: int) -> None:
        """Send a signal.

        Raises:
            ProcessLookupError: it has ended.
        """
        ...

    @abstractmethod
    def descriptor(self) -> int | None:
        """Return what names it for as long as it is open (its pidfd); None if there is none."""
        ...

    @abstractmethod
    def close(self) -> None:
        """Let go of it; it runs on. Its status, if it has ended, is the kernel's no more: it was
        written down. Twice is no error."""
        ...


class OciRuntime(ABC):
    """Creates, starts and deletes containers of the OCI runtime specification.

    Every call is bounded in time by the implementation. Cancelling one kills the program that does
    the work; what it left is removed by `delete`.
    """

    name: str

    @abstractmethod
    async def create(
        self, container: str, bundle: Path, stdio: ProcessStdio, console: str | None
    ) -> ContainerProcess:
        """Create a container whose first process waits to be started.

        Args:
            container: Its id.
            bundle: Folder with `config.json`.
            stdio: For the process, when it has no terminal.
            console: Name of a Unix socket in `bundle` that gets the terminal's master, or None.

        Raises:
            NotFound: the command is not there; `details["exit_status"]` is 127.
            InvalidArgument: it can't be executed; `details["exit_status"]` is 126.
            Unavailable: anything else went wrong.
        """
        ...

    @abstractmethod
    async def start(self, container: str) -> None:
        """Let the first process run its command."""
        ...

    @abstractmethod
    async def execute(
        self,
        container: str,
        bundle: Path,
        process: dict[str, Any],
        stdio: ProcessStdio,
        console: str | None,
    ) -> ContainerProcess:
        """Run a further process in a running container. Raises as `create` does.

        Args:
            container: Its id.
            bundle: Folder with `config.json`; small files of the call go there.
            process: `process` of the OCI configuration.
            stdio: For the process, when it has no terminal.
            console: Name of a Unix socket in `bundle` that gets the terminal's master, or None.
        """
        ...

    @abstractmethod
    async def pause(self, container: str) -> None:
        """Let no process of a container run until `resume`.

        Raises:
            Unavailable: it could not be done, and all run on.
        """
        ...

    @abstractmethod
    async def resume(self, container: str) -> None:
        """Let a paused container run; one that is not paused, or gone, is no error.

        Raises:
            Unavailable: the kernel or the runtime refused.
        """
        ...

    @abstractmethod
    def find(
        self, pid: int, began: int, pidfd: int | None, orphan: AskForOrphan
    ) -> ContainerProcess:
        """Return a process that an earlier helper has made; it may have ended by now.

        Args:
            pid: Of it.
            began: Its start time (`records.start_time`).
            pidfd: Of it, where one was kept; owned.
            orphan: Tells how a process has ended that is nobody's child here.
        """
        ...

    @abstractmethod
    def has_begun(self, process: ContainerProcess) -> bool:
        """Return whether a first process was started: it runs, or ran, the container's command."""
        ...

    @abstractmethod
    async def settle(self, container: str) -> None:
        """End what an earlier helper had asked of this runtime, and did not live to see done."""
        ...

    @abstractmethod
    async def delete(self, container: str) -> None:
        """Delete a container in any state, killing what still runs. None is no error."""
        ...


def explained(program: str, command: str, text: str) -> ContainerError:
    """Return what an OCI runtime's error text means to the person.

    Args:
        program: Name of the runtime.
        command: The container's command, as the user wrote it.
        text: The runtime's own last error.
    """
    lower = text.lower()
    details: dict[str, object] = {"runtime": program, "runtime_error": text}
    about_command = "exec" in lower
    if about_command and ("not found" in lower or "no such file" in lower):
        return command_not_found(command, details)
    if about_command and "is a directory" in lower:
        return command_not_executable(command, "it is a directory", details)
    if about_command and "permission denied" in lower:
        return command_not_executable(command, "permission denied", details)
    if "exec format error" in lower or "invalid argument: exec" in lower:
        return command_not_executable(command, "not a program of this machine", details)
    if "no space left" in lower:
        return Unavailable("no space is left", hint="free some space", details=details)
    reason = text.strip().rsplit("\n", 1)[-1] or "it gave no reason"
    return Unavailable(f"{program} failed: {reason}", details=details)


def command_not_found(command: str, details: dict[str, object] | None = None) -> NotFound:
    """Return the error of a command that is not there: exit status 127."""
    return NotFound(
        f"the container has no command {command!r}",
        hint="check its spelling and the PATH of the image",
        details={**(details or {}), "exit_status": 127},
    )


def command_not_executable(
    command: str, reason: str, details: dict[str, object] | None = None
) -> InvalidArgument:
    """Return the error of a command that can't be executed: exit status 126."""
    return InvalidArgument(
        f"command {command!r} can't be executed: {reason}",
        details={**(details or {}), "exit_status": 126},
    )
