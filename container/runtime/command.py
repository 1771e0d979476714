"""Is the command there, and can it be run? Asked before an OCI runtime is started for nothing.

An OCI runtime says the same, but late, and on the container's own stderr as well, where it would be
mixed with what the user asked for. Where we can't tell (a mount of the user's may bring the
command), the answer is the OCI runtime's.
"""

from __future__ import annotations

import os
import posixpath
import stat

from container.contracts.runtime import ProcessSpec
from container.ipc import ContainerError
from container.runtime.bundle import DEFAULT_PATH
from container.runtime.inside import InsideRoot
from container.runtime.oci import command_not_executable, command_not_found

_BINFMT = "/proc/sys/fs/binfmt_misc"


def missing_command(process: ProcessSpec, root: InsideRoot) -> ContainerError | None:
    """Return why a process's command can't be run in this root, or None if nothing speaks against
    it.

    Returns:
        `NotFound` (exit status 127), `InvalidArgument` (126), or None.
    """
    command = process.arguments[0]
    refusal: str | None = None
    for path in _candidates(process):
        found = root.stat(path)
        if found is None:
            continue
        if stat.S_ISDIR(found.st_mode):
            refusal = refusal or "it is a directory"
        elif not found.st_mode & 0o111 or not stat.S_ISREG(found.st_mode):
            refusal = refusal or "permission denied"
        else:
            head = root.starts_with(path, 4)
            if head and not _runnable(head):
                return command_not_executable(command, "it is neither a program nor a script")
            return None
    if refusal is not None:
        return command_not_executable(command, refusal)
    return command_not_found(command)


def _candidates(process: ProcessSpec) -> list[str]:
    command = process.arguments[0]
    if "/" in command:
        return [posixpath.join(process.working_directory, command)]
    path = DEFAULT_PATH
    for variable in process.environment:
        name, _, value = variable.partition("=")
        if name == "PATH":
            path = value
    folders = [posixpath.join(process.working_directory, part) for part in path.split(":")]
    return [posixpath.join(folder, command) for folder in folders]


def _runnable(head: bytes) -> bool:
    if head.startswith((b"\x7fELF", b"#!")):
        return True
    try:
        # The kernel may have been taught other formats.
        return bool(set(os.listdir(_BINFMT)) - {"register", "status"})
    except OSError:
        return False
