"""The OCI bundle of a container: its `config.json`.

Defaults are podman's, and stricter where that costs nobody: no new privileges. Limits of ours are
never raised: a process inherits our own rlimits. What is *not* here: running it.

Source: OCI runtime specification, `config.md` and `config-linux.md`.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from attrs import frozen

from container.contracts.runtime import ProcessSpec, Resources, SandboxSpec
from container.ipc import InvalidArgument
from container.runtime.cgroup import cgroup_path
from container.runtime.kernel import Machine
from container.runtime.mounts import all_mounts, default_mounts
from container.runtime.names_files import check_names
from container.runtime.seccomp import seccomp_profile
from container.runtime.user import User

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""podman's default set."""

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

NETWORK_SETTINGS = {
    "net.ipv4.ping_group_range": "0 2147483647",
    "net.ipv4.ip_unprivileged_port_start": "0",
}
"""As docker sets them in a network namespace of the container's own: ping needs no capability, and
a service need not be root to listen on port 80."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CPU_PERIOD = 100_000
_MEMORY_MIN = 512 * 1024
"""Below this the first process can't even be made."""
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")


@frozen
class BundleFiles:
    """Where a bundle is written.

    Args:
        folder: The bundle's own folder.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The OCI configuration."""
        return self.folder / "config.json"

    def write(self, configuration: dict[str, Any]) -> None:
        """Write the configuration. Blocking; not synced: a bundle does not outlive its run."""
        self.config.write_text(json.dumps(configuration))


def check_spec(spec: SandboxSpec) -> None:
    """Refuse what no container can have, before anything is made.

    Raises:
        InvalidArgument: the message names the option and its rule.
    """
    check_process(spec.process)
    if not _HOSTNAME.fullmatch(spec.hostname):
        raise InvalidArgument(
            f"{spec.hostname!r} is no host name", hint="use letters, digits, - and ., at most 64"
        )
    check_names(spec.names, reaches_host=spec.network in ("networks", "host"))
    resources = spec.resources
    if resources.memory is not None and resources.memory < _MEMORY_MIN:
        raise InvalidArgument(f"a memory limit of {resources.memory} bytes is below 512 KiB")
    if resources.cpus is not None:
        available = os.cpu_count() or 1
        if not (math.isfinite(resources.cpus) and 0.01 <= resources.cpus <= available):
            raise InvalidArgument(
                f"{resources.cpus:g} cores can't be given: this machine has {available}",
                hint=f"use a number from 0.01 to {available}",
            )
    if resources.pids is not None and resources.pids < 1:
        raise InvalidArgument(f"a limit of {resources.pids} processes leaves none to run")


def check_process(process: ProcessSpec) -> None:
    """Refuse a process that can't be run.

    Raises:
        InvalidArgument: no arguments, an empty command, a bad variable or folder, privileged.
    """
    if process.privileged:
        raise InvalidArgument("privileged processes are not supported in this version")
    if not process.arguments or not process.arguments[0]:
        raise InvalidArgument("there is no command to run", hint="name one after the image")
    for variable in process.environment:
        if variable.find("=") < 1:
            raise InvalidArgument(f"environment {variable!r} is not NAME=value")
    if not process.working_directory.startswith("/"):
        raise InvalidArgument(
            f"working directory {process.working_directory!r} is not an absolute path"
        )
    for text in (*process.arguments, *process.environment, process.working_directory):
        if "\0" in text:
            raise InvalidArgument("arguments and environment can't hold a NUL character")


def process_configuration(process: ProcessSpec, user: User) -> dict[str, Any]:
    """Return `process` of the configuration, also what `exec` takes."""
    environment = list(process.environment)
    names = {variable.partition("=")[0] for variable in environment}
    if "PATH" not in names:
        environment.insert(0, f"PATH={DEFAULT_PATH}")
    if "HOME" not in names:
        environment.append(f"HOME={user.home}")
    if process.terminal and "TERM" not in names:
        environment.append("TERM=xterm")
    effective = list(CAPABILITIES) if user.uid == 0 else []
    configuration: dict[str, Any] = {
        "terminal": process.terminal,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "umask": 0o022,
            "additionalGids": list(user.additional_gids),
        },
        "args": list(process.arguments),
        "env": environment,
        "cwd": process.working_directory,
        "capabilities": {
            "bounding": list(CAPABILITIES),
            "permitted": effective,
            "effective": effective,
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": True,
    }
    if process.terminal and process.terminal_size is not None:
        size = process.terminal_size
        configuration["consoleSize"] = {"height": size.height, "width": size.width}
    return configuration


def configuration(
    spec: SandboxSpec,
    user: User,
    root: Path,
    files: dict[str, Path],
    machine: Machine,
    network: str | None,
) -> dict[str, Any]:
    """Return the whole OCI configuration.

    Args:
        spec: The container.
        user: Its resolved user.
        root: Where its root is mounted.
        files: Destination to the file to bind there.
        machine: Where it will run.
        network: Path of its network namespace; None is the host's.

    Raises:
        NotFound: a bind source is not there.
        InvalidArgument: a mount is refused.
    """
    namespaces = [{"type": name} for name in ("pid", "ipc", "uts", "mount")]
    if network is not None:
        namespaces.append({"type": "network", "path": network})
    if machine.own_cgroup_namespace:
        namespaces.append({"type": "cgroup"})
    linux: dict[str, Any] = {
        "cgroupsPath": cgroup_path(spec.id),
        "namespaces": namespaces,
        "resources": _resources(spec.resources),
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READ_ONLY_PATHS),
    }
    if spec.network not in ("host", "shared"):
        linux["sysctl"] = dict(NETWORK_SETTINGS)
    if profile := seccomp_profile(machine.architecture):
        linux["seccomp"] = profile
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": {"path": str(root), "readonly": spec.read_only_root},
        "process": process_configuration(spec.process, user),
        "mounts": all_mounts(default_mounts(machine.own_cgroup_namespace), files, spec.mounts),
        "linux": linux,
    }


def _resources(resources: Resources) -> dict[str, Any]:
    found: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if resources.memory is not None:
        # Swap is counted in: a container with a limit may not go around it by swapping.
        found["memory"] = {"limit": resources.memory, "swap": resources.memory}
    if resources.cpus is not None:
        quota = max(1000, round(resources.cpus * _CPU_PERIOD))
        found["cpu"] = {"quota": quota, "period": _CPU_PERIOD}
    if resources.pids is not None:
        found["pids"] = {"limit": resources.pids}
    return found
