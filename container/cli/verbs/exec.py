"""`container exec`: run a further command in a running container."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import click

from container.cli import environment, names
from container.cli.creation import process_options
from container.cli.groups import ProcessVerb
from container.cli.session import QUICK, Session

if TYPE_CHECKING:
    from container.contracts.runtime import ProcessSpec

HELP = """Run a further command in a running container.

Options end at CONTAINER. The exit status is the command's; 125 if we failed, 126 if it can't be
executed, 127 if it is not there. Environment, working directory and user are the container's where
not given.
"""


@click.command("exec", cls=ProcessVerb, help=HELP)
@click.option("-d", "--detach", is_flag=True, help="Run in the background; its output is dropped.")
@process_options
@click.argument("container", metavar="CONTAINER")
@click.argument(
    "arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARGUMENT]..."
)
@click.pass_obj
def command(
    session: Session, detach: bool, container: str, arguments: tuple[str, ...], **values: Any
) -> int:
    """Run a command in a container."""
    from container.cli.terminal import terminal_size
    from container.contracts.runtime import ProcessSpec

    workdir, user = values["workdir"], values["user"]
    terminal = values["tty"] and not detach
    spec = ProcessSpec(
        arguments=arguments,
        environment=environment.parse_environment(values["env"], values["env_file"]),
        working_directory="" if workdir is None else names.parse_folder(workdir),
        user="" if user is None else names.parse_user(user),
        terminal=terminal,
        terminal_size=terminal_size(1, 0, 2) if terminal else None,
        keep_input=values["interactive"] and not detach,
    )
    if terminal and spec.keep_input:
        from container.cli.plumbing import warn_without_terminal

        warn_without_terminal()
    return session.run(_exec, session, container, spec, detach)


async def _exec(session: Session, container: str, spec: ProcessSpec, detach: bool) -> int:
    import trio
    from attrs import evolve

    from container.cli.attach import STARTING, Attachment, exit_code
    from container.cli.plumbing import Plumbing
    from container.cli.signals import relayed_signals
    from container.contracts.runtime import Stdio

    process = f"exec-{uuid.uuid4().hex[:12]}"
    status = 0
    async with relayed_signals() as relay, session.containers() as containers:
        if spec.environment:
            # Ours is added to the container's; what is sent is complete.
            with trio.fail_after(QUICK):
                base = (await containers.get(container)).process.environment
            merged = environment.merge_environment(base, spec.environment)
            spec = evolve(spec, environment=merged)
        if detach:
            with trio.fail_after(STARTING):
                endpoint = await containers.create_process(container, process, spec, Stdio())
                async with endpoint.connect() as sandbox:
                    await sandbox.start(process)
            return 0
        with Plumbing(
            interactive=spec.keep_input,
            terminal=spec.terminal,
            logged=False,
            size=spec.terminal_size,
        ) as plumbing:
            with trio.fail_after(STARTING):
                endpoint = await containers.create_process(container, process, spec, plumbing.stdio)
            plumbing.sent()
            ended = await Attachment(process, plumbing, relay).run(endpoint, None)
            status = 0 if ended is None else exit_code(ended, container)
    return 128 + relay.ended_by if relay.ended_by else status
