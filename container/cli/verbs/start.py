"""`container start`: start created or stopped containers, attached or not."""

from __future__ import annotations

import click

from container.cli.failure import Refused, UsageRefused
from container.cli.groups import ProcessVerb
from container.cli.session import QUICK, Session

HELP = """Start created or stopped containers.

With -a the output of one container is shown here and its exit status is ours; -i passes stdin on as
well (and means -a). Without, the output goes to the container's log, and the names are printed.
"""


@click.command(
    "start", cls=ProcessVerb, help=HELP, context_settings={"allow_interspersed_args": True}
)
@click.option("-a", "--attach", is_flag=True, help="Show the output here, and pass signals on.")
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on; means -a.")
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@click.pass_obj
def command(session: Session, attach: bool, interactive: bool, containers: tuple[str, ...]) -> int:
    """Start containers."""
    if not attach and not interactive:
        session.run(_start, session, containers)
        return 0
    name, *others = containers
    if others:
        raise UsageRefused(
            "only one container can be attached to: name one, or leave -a and -i out"
        )
    return session.run(_start_attached, session, name, interactive)


async def _start(session: Session, names: tuple[str, ...]) -> None:
    import trio

    from container.cli.attach import STARTING
    from container.cli.many import each

    async with session.containers() as containers:

        async def start(name: str) -> str:
            with trio.fail_after(STARTING):
                await containers.start(name)
            return name

        await each(names, start)


async def _start_attached(session: Session, name: str, interactive: bool) -> int:
    import trio

    from container.cli.attach import attach_init
    from container.cli.plumbing import Plumbing, warn_without_terminal
    from container.cli.signals import relayed_signals
    from container.contracts.apiserver import ContainerStatus

    status = 0
    async with relayed_signals() as relay:
        async with session.containers() as containers:
            with trio.fail_after(QUICK):
                container = await containers.get(name)
            if container.status in (ContainerStatus.RUNNING, ContainerStatus.PAUSED):
                raise Refused(
                    f'"{name}" runs already',
                    hint=f'see its output with "container logs -f {name}"',
                )
            terminal = container.process.terminal
            if terminal and interactive:
                warn_without_terminal()
            with Plumbing(
                interactive=interactive, terminal=terminal, logged=container.keep_log
            ) as plumbing:
                status = await attach_init(session, containers, container, plumbing, relay)
    return 128 + relay.ended_by if relay.ended_by else status
