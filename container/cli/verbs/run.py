"""`container run`: create a container and run it, attached or detached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from container.cli.creation import container_options, creation_options
from container.cli.failure import UsageRefused
from container.cli.groups import ProcessVerb
from container.cli.session import Session

if TYPE_CHECKING:
    from container.contracts.apiserver import ContainerOptions

HELP = """Create and run a container.

Options end at IMAGE: what follows is the command and its arguments. The exit status is the
command's; 125 if we failed, 126 if the command can't be executed, 127 if it is not there, 128+n
after signal n.

Without -d the command is attached: its output is shown here, with -i it reads our stdin, and
signals are passed on to it; the third Ctrl-C ends this command alone. With -it, Ctrl-P Ctrl-Q
detaches (not with --rm, which keeps no log). With -t and a stdin that is no terminal, input is
passed on as if typed.

The container is in the network named "default", from which it reaches the world through this
machine; --network none gives it none. CONTAINER_NETWORK names another default. Ports of this
machine lead to it with -p, as in -p 8080:80.
"""


@click.command("run", cls=ProcessVerb, help=HELP, short_help="Create and run a container.")
@click.option("-d", "--detach", is_flag=True, help="Run in the background and print the id.")
@creation_options
@click.pass_obj
def command(
    session: Session, detach: bool, image: str, arguments: tuple[str, ...], **values: Any
) -> int:
    """Create and run a container."""
    # A log is of no use to a container that is gone when its output has been seen.
    keep_log = detach or not values["rm"]
    options = container_options(values, image=image, arguments=arguments, keep_log=keep_log)
    if values["cidfile"] == "":
        raise UsageRefused("--cidfile needs the name of a file")
    if detach:
        return session.run(_run_detached, session, options, values["cidfile"])
    if options.terminal and options.keep_input:
        from container.cli.plumbing import warn_without_terminal

        warn_without_terminal()
    return session.run(_run_attached, session, options, values["cidfile"])


async def _run_detached(session: Session, options: ContainerOptions, cidfile: str | None) -> int:
    import trio

    from container.cli.attach import STARTING, remove_unstarted
    from container.cli.cidfile import CidFile
    from container.cli.signals import relayed_signals

    async with relayed_signals() as relay:
        with CidFile(cidfile) as file:
            async with session.containers() as containers:
                container = await containers.create(options)
                file.write(container.id)
                try:
                    with trio.fail_after(STARTING):
                        await containers.start(container.id)
                except BaseException:
                    if container.auto_remove:
                        file.discard()
                        await remove_unstarted(session, containers, container.id)
                    raise
            print(container.id)
    return 128 + relay.ended_by if relay.ended_by else 0


async def _run_attached(session: Session, options: ContainerOptions, cidfile: str | None) -> int:
    from container.cli.attach import attach_init
    from container.cli.cidfile import CidFile
    from container.cli.plumbing import Plumbing
    from container.cli.signals import relayed_signals

    status = 0
    async with relayed_signals() as relay:
        with CidFile(cidfile) as file:
            async with session.containers() as containers:
                container = await containers.create(options)
                file.write(container.id)
                with Plumbing(
                    interactive=options.keep_input,
                    terminal=options.terminal,
                    logged=options.keep_log,
                    size=options.terminal_size,
                ) as plumbing:
                    status = await attach_init(
                        session, containers, container, plumbing, relay, file.discard
                    )
    return 128 + relay.ended_by if relay.ended_by else status
