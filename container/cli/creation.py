"""What `run` and `create` have in common: their options, and the request made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from container.cli import amounts, environment, mounts, names, networking, ports
from container.cli.failure import UsageRefused
from container.cli.keeping import KEEPING_OPTIONS, health_check, restart_policy, stop_timeout

if TYPE_CHECKING:
    from container.contracts.apiserver import ContainerOptions

F = TypeVar("F", bound=Callable[..., Any])

PROCESS_OPTIONS = (
    click.option("-i", "--interactive", is_flag=True, help="Pass stdin on to the process."),
    click.option("-t", "--tty", is_flag=True, help="Give the process a terminal."),
    click.option(
        "-e",
        "--env",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Set a variable; without a value, take ours.",
    ),
    click.option("--env-file", multiple=True, metavar="FILE", help="Read variables from a file."),
    click.option("-w", "--workdir", metavar="FOLDER", help="Working directory in the container."),
    click.option("-u", "--user", metavar="USER[:GROUP]", help="Run as this user."),
)
"""Of every process: `run`, `create` and `exec`."""

CREATION_OPTIONS = (
    click.option("--name", metavar="NAME", help="Name of the container; made up if not given."),
    click.option("--rm", is_flag=True, help="Remove the container when it has ended."),
    click.option("--entrypoint", metavar="COMMAND", help="Run this instead of the image's own."),
    click.option(
        "-v",
        "--volume",
        multiple=True,
        metavar="[SOURCE:]DESTINATION[:ro]",
        help="Mount a volume by its name, or a file or folder of this machine by its path.",
    ),
    click.option(
        "--volumes-from",
        multiple=True,
        metavar="CONTAINER[:ro]",
        help="Mount all volumes of another container.",
    ),
    click.option(
        "--mount",
        multiple=True,
        metavar="FIELDS",
        help="type=bind,source=PATH,target=PATH[,readonly], type=volume,source=NAME,target=PATH"
        "[,readonly][,volume-nocopy], or type=tmpfs,target=PATH.",
    ),
    click.option(
        "--tmpfs",
        multiple=True,
        metavar="DESTINATION[:OPTIONS]",
        help="Mount an empty folder in memory, as in /tmp:size=64m.",
    ),
    click.option("--read-only", is_flag=True, help="Make the container's root read-only."),
    click.option("-m", "--memory", metavar="AMOUNT", help="Limit of memory, as in 512m or 2g."),
    click.option("-c", "--cpus", metavar="NUMBER", help="Limit of CPUs, as in 1.5."),
    click.option(
        "--pids-limit",
        metavar="NUMBER",
        help="Limit of processes and threads (2048); -1 for none.",
    ),
    *networking.NETWORK_OPTIONS,
    click.option("--hostname", metavar="NAME", help="Host name inside."),
    click.option("--cidfile", metavar="FILE", help="Write the container's id to a new file."),
    click.option(
        "-l",
        "--label",
        multiple=True,
        metavar="KEY[=VALUE]",
        help="Set a label.",
    ),
    click.option("--runtime", metavar="RUNTIME", help="OCI runtime: runc, crun, or a path."),
    click.option(
        "--pull",
        default="missing",
        show_default=True,
        type=click.Choice(["missing", "always", "never"]),
        help="When to fetch the image.",
    ),
    click.option(
        "--platform", metavar="OS/ARCHITECTURE", help="Platform of the image, as in linux/arm64."
    ),
    *KEEPING_OPTIONS,
)


def process_options(command: F) -> F:
    """Give a command the options of every process."""
    for option in reversed(PROCESS_OPTIONS):
        command = option(command)
    return command


def creation_options(command: F) -> F:
    """Give a command the options of a new container, its image and its command."""
    command = click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND]...")(
        command
    )
    command = click.argument("image", metavar="IMAGE")(command)
    for option in reversed(CREATION_OPTIONS):
        command = option(command)
    return process_options(command)


def container_options(
    values: dict[str, Any], *, image: str, arguments: tuple[str, ...], keep_log: bool
) -> ContainerOptions:
    """Return the request that parsed options make.

    Raises:
        UsageRefused: an option makes no sense.
    """
    from container.cli.terminal import terminal_size
    from container.contracts.apiserver import ContainerOptions, PullPolicy
    from container.contracts.runtime import Resources

    if not image or image.startswith("-"):
        raise UsageRefused(f'"{image}" is no image')
    limits: dict[str, Any] = {}
    if values["memory"] is not None:
        limits["memory"] = amounts.parse_memory(values["memory"])
    if values["cpus"] is not None:
        limits["cpus"] = amounts.parse_cpus(values["cpus"])
    if values["pids_limit"] is not None:
        limits["pids"] = amounts.parse_pids(values["pids_limit"])
    network, uses = networking.network_choice(values)
    entrypoint: str | None = values["entrypoint"]
    return ContainerOptions(
        image=image,
        name=_optional(names.parse_name, values["name"]),
        command=arguments,
        # An empty one clears the image's.
        entrypoint=None if entrypoint is None else (entrypoint,) if entrypoint else (),
        environment=environment.parse_environment(values["env"], values["env_file"]),
        working_directory=_optional(names.parse_folder, values["workdir"]),
        user=_optional(names.parse_user, values["user"]),
        terminal=values["tty"],
        terminal_size=terminal_size(1, 0, 2) if values["tty"] else None,
        keep_input=values["interactive"],
        auto_remove=values["rm"],
        keep_log=keep_log,
        read_only_root=values["read_only"],
        mounts=(
            *mounts.parse_mounts(values["volume"], values["mount"], values["tmpfs"]),
            *networking.socket_mounts(values["publish_socket"]),
        ),
        volumes_from=mounts.parse_volumes_from(values["volumes_from"]),
        resources=Resources(**limits),
        network=network,
        networks=uses,
        ports=ports.parse_ports(values["publish"]),
        publish_all=values["publish_all"],
        names=networking.name_options(values),
        labels=environment.parse_labels(values["label"]),
        hostname=_optional(names.parse_hostname, values["hostname"]),
        runtime=values["runtime"],
        stop_signal=_optional(names.parse_signal, values["stop_signal"]),
        platform=_optional(names.parse_platform, values["platform"]),
        pull=PullPolicy(values["pull"]),
        restart=restart_policy(values),
        health=health_check(values),
        stop_timeout=stop_timeout(values),
    )


T = TypeVar("T")


def _optional(parse: Callable[[str], T], text: str | None) -> T | None:
    return None if text is None else parse(text)
