"""`container system version`: ours, and that of the system that runs."""

from __future__ import annotations

import click

import container
from container.cli.failure import say
from container.cli.groups import Verb
from container.cli.output import format_option, print_json
from container.cli.session import QUICK, Session


@click.command("version", cls=Verb, help="Show the version here, and that of the system that runs.")
@format_option()
@click.pass_obj
def command(session: Session, output: str) -> None:
    """Show versions."""
    running = session.run(_running, session)
    ours = container.__version__
    if output == "json":
        print_json({"client": ours, "system": running})
    else:
        print(f"client  {ours}")
        print(f"system  {running or 'does not run'}")
    if running is not None:
        say_other_version(running)


def say_other_version(running: str) -> None:
    """Warn if the system that runs is of another version than this command."""
    ours = container.__version__
    if running != ours:
        say(
            f"the system that runs is of version {running}, this command of {ours}",
            'restart it: "container system stop", then "container system start"',
        )


async def _running(session: Session) -> str | None:
    import trio

    from container.ipc import Fate, PeerGone

    try:
        async with session.launcher() as launcher:
            with trio.fail_after(QUICK):
                return (await launcher.status()).version
    except PeerGone as gone:
        if gone.fate is Fate.REFUSED:
            return None
        raise
