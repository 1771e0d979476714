"""What a container is made from: the user's options and the image's configuration become a
`Container`.

Pure: nothing is looked up, written or started here, so that every rule can be tested by a call. The
one rule of precedence: the user's word wins over the image's, the image's over the defaults.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterable
from datetime import datetime
from typing import TypeVar

from attrs import evolve

from container.apiserver.healthchecks import INTERVAL, RETRIES, TIMEOUT
from container.apiserver.names import check_name
from container.apiserver.network_options import check_network_options, exposed, network_mode
from container.apiserver.signals import signal_name
from container.contracts.apiserver import (
    Container,
    ContainerOptions,
    ContainerStatus,
    HealthCheck,
    RestartCondition,
)
from container.contracts.images import Image, ImageConfig
from container.contracts.network import PublishedPort
from container.contracts.runtime import (
    INIT,
    Mount,
    MountKind,
    ProcessSpec,
    Resources,
    SandboxNetwork,
    SandboxSpec,
)
from container.ipc import InvalidArgument

T = TypeVar("T")

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MEMORY_MIN = 6 * 1024 * 1024
"""Bytes; below it the OCI runtime itself does not fit into the control group."""
CPUS_MIN = 0.01
"""The kernel's smallest quota is 1 ms in a period of 100 ms."""
TEXT_MAX = 128 * 1024
"""Bytes of one argument or variable: the kernel's MAX_ARG_STRLEN. Source: execve(2)."""
HOSTNAME_MAX = 64
"""Source: sethostname(2)."""
PROCESS_ID_MAX = 64
SECONDS_MAX = 366 * 86400.0
"""Of any time that a user gives."""


def check_options(options: ContainerOptions) -> None:
    """Check all that can be told without the image.

    Raises:
        InvalidArgument: a bad name, text, limit, mount, signal or label; the message says the rule.
    """
    if not options.image:
        raise InvalidArgument("no image is named")
    if options.name is not None:
        check_name(options.name)
    for text in (*options.command, *(options.entrypoint or ())):
        _check_text("argument", text)
    _check_environment(options.environment)
    _check_directory(options.working_directory)
    for what, text in (("user", options.user), ("runtime", options.runtime)):
        if text is not None:
            _check_text(what, text)
    _check_hostname(options.hostname)
    check_resources(options.resources)
    check_mounts(options.mounts)
    check_network_options(options)
    for key, value in options.labels.items():
        if not key:
            raise InvalidArgument("a label has no name", hint="write it as name=value")
        _check_text("label", key)
        _check_text("label", value)
    if options.stop_signal is not None:
        signal_name(options.stop_signal)
    _check_seconds("a stop timeout", options.stop_timeout)
    check_restart(options)
    if options.health is not None:
        check_health(options.health)


def check_restart(options: ContainerOptions) -> None:
    """Check a restart policy.

    Raises:
        InvalidArgument: it can't be kept.
    """
    condition, limit = options.restart.condition, options.restart.limit
    if condition is RestartCondition.NO and limit is None:
        return
    if limit is not None and condition is not RestartCondition.ON_FAILURE:
        raise InvalidArgument(
            f"the restart policy {condition.value} has no limit: only on-failure has one"
        )
    if limit is not None and not 1 <= limit < 2**31:
        raise InvalidArgument(f"a limit of {limit} restarts is out of range: at least 1")
    if options.auto_remove:
        raise InvalidArgument(
            f"a container that removes itself can't have the restart policy {condition.value}",
            hint="leave out one of --rm and --restart",
        )


def check_health(check: HealthCheck) -> None:
    """Check a health check.

    Raises:
        InvalidArgument: it has no sense, or a number is out of range.
    """
    for text in check.command or ():
        _check_text("health command", text)
    if check.command and not check.command[0]:
        raise InvalidArgument("the health command is empty")
    for what, seconds in (("interval", check.interval), ("timeout", check.timeout)):
        if seconds is not None and not 0.001 <= seconds <= SECONDS_MAX:
            raise InvalidArgument(
                f"a health {what} of {seconds:g} s is out of range: at least 1 ms are needed"
            )
    _check_seconds("a health start period", check.start_period)
    if check.retries is not None and not 1 <= check.retries < 2**31:
        raise InvalidArgument(f"{check.retries} health retries are out of range: at least 1")


def _check_seconds(what: str, seconds: float | None) -> None:
    if seconds is not None and not 0 <= seconds <= SECONDS_MAX:
        raise InvalidArgument(f"{what} of {seconds:g} s is out of range: 0 to a year")


def check_resources(resources: Resources) -> None:
    """Check limits.

    Raises:
        InvalidArgument: one is out of its range.
    """
    memory, cpus, pids = resources.memory, resources.cpus, resources.pids
    if memory is not None and not MEMORY_MIN <= memory < 2**63:
        raise InvalidArgument(
            f"a memory limit of {memory} bytes is too small: at least 6 MiB are needed"
        )
    if cpus is not None and not (math.isfinite(cpus) and CPUS_MIN <= cpus <= 65536):
        raise InvalidArgument(f"a limit of {cpus:g} CPUs is out of range: at least {CPUS_MIN}")
    if pids is not None and not 1 <= pids <= 2**22:
        raise InvalidArgument(f"a limit of {pids} processes is out of range: 1 to {2**22}")


def check_mounts(mounts: Iterable[Mount]) -> None:
    """Check mounts as far as it goes without looking at the disk.

    Raises:
        InvalidArgument: a path is not absolute, or two mounts have one destination.
    """
    destinations: set[str] = set()
    for mount in mounts:
        _check_text("mount", mount.destination)
        _check_text("mount", mount.source)
        if not mount.destination.startswith("/"):
            raise InvalidArgument(
                f"the mount destination {mount.destination!r} is not an absolute path"
            )
        destination = normal_path(mount.destination)
        if destination == "/":
            raise InvalidArgument("a mount can't replace the container's root '/'")
        if destination in destinations:
            raise InvalidArgument(f"two mounts have the destination {destination!r}")
        destinations.add(destination)
        if mount.kind is MountKind.BIND and not mount.source.startswith("/"):
            raise InvalidArgument(f"the mount source {mount.source!r} is not an absolute path")
        if mount.kind is MountKind.TMPFS and mount.source:
            raise InvalidArgument(f"a tmpfs has no source, {mount.source!r} was given")


def normal_path(path: str) -> str:
    """Return an absolute path without `.`, `..`, and doubled slashes."""
    return posixpath.normpath("/" + path.lstrip("/"))


def make_container(
    options: ContainerOptions, image: Image, *, container_id: str, name: str, created_at: datetime
) -> Container:
    """Make the container that `options` ask for.

    Raises:
        InvalidArgument: there is no command to run, or an option is wrong.
    """
    check_options(options)
    config = image.config
    hostname = options.hostname or container_id
    return Container(
        id=container_id,
        name=name,
        image=image.summary.reference,
        image_digest=image.summary.digest,
        platform=image.platform,
        status=ContainerStatus.CREATED,
        created_at=created_at,
        process=ProcessSpec(
            arguments=_arguments(options, config),
            environment=_environment(options, config, hostname),
            working_directory=normal_path(
                options.working_directory or config.working_directory or "/"
            ),
            user=config.user if options.user is None else options.user,
            terminal=options.terminal,
            terminal_size=options.terminal_size,
            keep_input=options.keep_input,
        ),
        resources=options.resources,
        mounts=tuple(
            evolve(mount, destination=normal_path(mount.destination)) for mount in options.mounts
        ),
        network=options.network,
        networks=options.networks,
        ports=_ports(options, config),
        names=options.names,
        hostname=hostname,
        labels={**config.labels, **options.labels},
        auto_remove=options.auto_remove,
        keep_log=options.keep_log,
        read_only_root=options.read_only_root,
        stop_signal=_stop_signal(options, config),
        runtime=options.runtime,
        restart=options.restart,
        stop_timeout=options.stop_timeout,
        health=_health(options.health, _own_health(config)),
    )


def _own_health(config: ImageConfig) -> HealthCheck | None:
    own = config.health
    if own is None:
        return None
    return HealthCheck(own.command, own.interval, own.timeout, own.start_period, own.retries)


def _health(given: HealthCheck | None, own: HealthCheck | None) -> HealthCheck | None:
    """Return a health check with all fields set, or None for no check.

    Args:
        given: By the user.
        own: The image's.
    """
    given, own = given or HealthCheck(), own or HealthCheck()
    command = own.command if given.command is None else given.command
    if not command:
        if given.command is None and given != HealthCheck():
            raise InvalidArgument(
                "there is no health command to run: the image has none either",
                hint="name one with --health-cmd",
            )
        return None

    def first(*values: T | None) -> T:
        return next(value for value in values if value is not None)

    return HealthCheck(
        command=command,
        interval=first(given.interval, own.interval, INTERVAL),
        timeout=first(given.timeout, own.timeout, TIMEOUT),
        start_period=first(given.start_period, own.start_period, 0.0),
        retries=first(given.retries, own.retries, RETRIES),
    )


def _ports(options: ContainerOptions, config: ImageConfig) -> tuple[PublishedPort, ...]:
    if not options.publish_all:
        return options.ports
    return (*options.ports, *exposed(config.exposed_ports, options.ports))


def sandbox_spec(
    container: Container, layers: tuple[str, ...], networks: tuple[SandboxNetwork, ...] = ()
) -> SandboxSpec:
    """Return what the runtime helper needs to know.

    Args:
        container: The container.
        layers: Of its image, topmost first.
        networks: That it is to be attached to.
    """
    return SandboxSpec(
        id=container.id,
        name=container.name,
        hostname=container.hostname,
        layers=layers,
        process=container.process,
        resources=container.resources,
        mounts=container.mounts,
        network=network_mode(container),
        networks=networks,
        names=container.names,
        read_only_root=container.read_only_root,
        stop_signal=container.stop_signal,
        runtime=container.runtime,
        keep_log=container.keep_log,
        labels=container.labels,
    )


def further_process(container: Container, process: str, spec: ProcessSpec) -> ProcessSpec:
    """Complete the specification of a further process from its container's.

    Its environment is the container's with the given variables laid over it.

    Raises:
        InvalidArgument: no command, a bad id, or bad text.
    """
    usable = process.replace("-", "").replace("_", "").replace(".", "")
    if (
        process == INIT
        or not usable.isalnum()
        or not usable.isascii()
        or len(process) > PROCESS_ID_MAX
    ):
        raise InvalidArgument(f"{process!r} can't be the id of a further process")
    if not spec.arguments or not spec.arguments[0]:
        raise InvalidArgument(
            "no command is named", hint="name the command to run in the container"
        )
    for text in spec.arguments:
        _check_text("argument", text)
    _check_environment(spec.environment)
    _check_directory(spec.working_directory or None)
    _check_text("user", spec.user)
    environment = _variables(container.process.environment)
    if spec.terminal:
        environment.setdefault("TERM", "xterm")
    environment.update(_variables(spec.environment))
    return evolve(
        spec,
        environment=_lines(environment),
        working_directory=normal_path(
            spec.working_directory or container.process.working_directory
        ),
        user=spec.user or container.process.user,
    )


def _arguments(options: ContainerOptions, config: ImageConfig) -> tuple[str, ...]:
    # An entrypoint that the user gave takes the image's command with it: that one was written as
    # the arguments of the image's own entrypoint.
    if options.entrypoint is not None:
        arguments = (*options.entrypoint, *options.command)
    else:
        arguments = (*config.entrypoint, *(options.command or config.command))
    if not arguments or not arguments[0]:
        raise InvalidArgument(
            f"image {options.image} has no command: name one",
            hint=f"for example `container run {options.image} /bin/sh`",
        )
    return arguments


def _environment(options: ContainerOptions, config: ImageConfig, hostname: str) -> tuple[str, ...]:
    merged = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if options.terminal:
        merged["TERM"] = "xterm"
    # What an image carries is taken as it is, but for lines that are no variables at all.
    merged.update(_variables(line for line in config.environment if line.partition("=")[0]))
    merged.update(_variables(options.environment))
    return _lines(merged)


def _variables(lines: Iterable[str]) -> dict[str, str]:
    pairs = (line.partition("=") for line in lines)
    return {name: value for name, _, value in pairs}


def _lines(variables: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in variables.items())


def _stop_signal(options: ContainerOptions, config: ImageConfig) -> str:
    if options.stop_signal is not None:
        return signal_name(options.stop_signal)
    return signal_name(config.stop_signal or "SIGTERM")


def _check_text(what: str, text: str) -> None:
    if "\0" in text:
        raise InvalidArgument(f"a {what} holds a NUL byte")
    if len(text) > TEXT_MAX or len(text.encode("utf-8", "surrogateescape")) >= TEXT_MAX:
        raise InvalidArgument(f"a {what} is longer than the kernel allows: {TEXT_MAX} bytes")


def _check_environment(lines: Iterable[str]) -> None:
    for line in lines:
        name, equals, _ = line.partition("=")
        if not name or not equals:
            raise InvalidArgument(f"{line!r} is no environment variable: write NAME=value")
        _check_text("variable", line)


def _check_directory(path: str | None) -> None:
    if path is None:
        return
    _check_text("working directory", path)
    if not path.startswith("/"):
        raise InvalidArgument(f"the working directory {path!r} is not an absolute path")


def _check_hostname(hostname: str | None) -> None:
    if hostname is None:
        return
    usable = hostname.replace("-", "").replace(".", "").replace("_", "")
    if not usable.isalnum() or not usable.isascii() or len(hostname) > HOSTNAME_MAX:
        raise InvalidArgument(
            f"{hostname!r} can't be a host name: 1 to {HOSTNAME_MAX} letters, digits, '.' and '-'"
        )
