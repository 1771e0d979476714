"""The command line's entry: the table of verbs, and the one place where an exit status is made.

Statuses: `run`, `create`, `start` and `exec` use 125 (our fault or bad usage), 126 (not
executable), 127 (not found) and else what the container's process said; other verbs 1 (failed) and
2 (bad usage); 130 after Ctrl-C; 141 when the reader of our output is gone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from container.cli.groups import Entry, LazyGroup

if TYPE_CHECKING:
    from container.cli.session import Session

VERBS = "container.cli.verbs"

ENTRIES = (
    Entry("run", f"{VERBS}.run:command", "Create and run a container."),
    Entry("create", f"{VERBS}.create:command", "Create a container without starting it."),
    Entry("start", f"{VERBS}.start:command", "Start created or stopped containers."),
    Entry("stop", f"{VERBS}.stop:command", "Stop running containers."),
    Entry("restart", f"{VERBS}.restart:command", "Stop containers and start them again."),
    Entry("pause", f"{VERBS}.pause:command", "Freeze running containers."),
    Entry("unpause", f"{VERBS}.unpause:command", "Let paused containers go on."),
    Entry("kill", f"{VERBS}.kill:command", "Send a signal to running containers."),
    Entry("delete", f"{VERBS}.delete:command", "Delete containers.", ("rm",)),
    Entry("list", f"{VERBS}.list:command", "List containers.", ("ls", "ps")),
    Entry("exec", f"{VERBS}.exec:command", "Run a further command in a running container."),
    Entry("logs", f"{VERBS}.logs:command", "Show the output of a container."),
    Entry("inspect", f"{VERBS}.inspect:command", "Show all that is known of containers."),
    Entry(
        "wait", f"{VERBS}.wait:command", "Wait for containers to end; print their exit statuses."
    ),
    Entry("events", f"{VERBS}.events:command", "Show what happens to containers."),
    Entry("stats", f"{VERBS}.stats:command", "Show what running containers use."),
    Entry("port", f"{VERBS}.port:command", "Show the published ports of a container."),
    Entry("dial", f"{VERBS}.dial:command", "Connect to a port inside a container."),
    Entry("network", "container.cli.network.group:command", "Create, list and delete networks."),
    Entry(
        "image", "container.cli.image.group:command", "Load, pull, list and delete images.", ("i",)
    ),
    Entry("images", "container.cli.image.list:command", "List images (`image list`)."),
    Entry("pull", "container.cli.image.pull:command", "Fetch an image (`image pull`)."),
    Entry("load", "container.cli.image.load:command", "Load an image archive (`image load`)."),
    Entry("volume", "container.cli.volume.group:command", "Create, list and delete volumes."),
    Entry("system", "container.cli.system.group:command", "Start, stop and look at the system."),
    Entry("ipc", "container.cli.ipc.group:command", "Look at services and call them."),
    Entry("completion", f"{VERBS}.completion:command", "Print a shell's completion script."),
    Entry("help", f"{VERBS}.help:command", "Show help of a command."),
)

EPILOG = (
    "Containers are in the network named default unless --network says otherwise; with "
    "--network none they have none, with --network host the host's."
)


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from container import __version__

        click.echo(f"container {__version__}")
        context.exit()


@click.group(
    "container",
    cls=LazyGroup,
    entries=ENTRIES,
    help="Run Linux containers.",
    epilog=EPILOG,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGUMENT]...",
)
@click.option("--debug", is_flag=True, help="Show tracebacks of errors (or set CONTAINER_DEBUG=1).")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def root(context: click.Context, debug: bool) -> None:
    """Run Linux containers."""
    session: Session = context.obj
    session.debug = session.debug or debug
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(argv: list[str] | None = None, session: Session | None = None) -> int:
    """Run one command line and return its exit status; nothing is raised.

    Args:
        argv: The arguments after the program's name; None takes `sys.argv`'s.
        session: Where the services are; None is the user's own system.
    """
    from container.cli.session import Session

    if session is None:
        session = Session(debug=os.environ.get("CONTAINER_DEBUG", "") not in ("", "0"))
    arguments: Sequence[str] = sys.argv[1:] if argv is None else argv
    try:
        result: object = root.main(
            args=list(arguments), prog_name="container", standalone_mode=False, obj=session
        )
        status = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except SystemExit as end:  # shell completion ends so
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        from container.cli.failure import report

        status = report(error, debug=session.debug)
    return _flushed(status)


def _flushed(status: int) -> int:
    """Flush what is left; a reader that is gone must not end in Python's own complaint at exit."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        return status or 141
    return status


if __name__ == "__main__":
    sys.exit(main())
