"""`container system stop`: stop the launcher and all its services, in order."""

from __future__ import annotations

import os

import click

from container.cli.failure import Refused, say
from container.cli.groups import Verb
from container.cli.session import QUICK, Session

STOPPING = 120.0
"""Seconds that all services have, one after the other."""

HELP = """Stop the system: its services in order, then the launcher.

Containers go on running, and the next start finds them, unless --containers stops them too. A
system that does not run is no error.
"""


@click.command("stop", cls=Verb, help=HELP)
@click.option("-c", "--containers", is_flag=True, help="Stop the containers too.")
@click.pass_obj
def command(session: Session, containers: bool) -> None:
    """Stop the system."""
    session.run(_stop, session, containers)


async def _stop(session: Session, containers: bool) -> None:
    import trio

    from container.contracts.launcher import ServiceState
    from container.ipc import Fate, PeerGone

    try:
        async with session.launcher() as launcher:
            with trio.fail_after(QUICK):
                status = await launcher.status()
            try:
                process = os.pidfd_open(status.pid)
            except ProcessLookupError:
                process = None
            try:
                with trio.fail_after(STOPPING):
                    await launcher.shutdown(stop_containers=containers)
                    if process is not None:
                        await trio.lowlevel.wait_readable(process)
            except trio.TooSlowError:
                raise Refused(
                    f"the launcher (process {status.pid}) did not end within {STOPPING:.0f} s",
                    hint=f"see its log in {session.paths.logs}",
                ) from None
            finally:
                if process is not None:
                    os.close(process)
    except PeerGone as gone:
        if gone.fate is Fate.REFUSED:
            say("the system does not run")
            return
        raise
    if status.supervisor:
        say(
            f"{status.supervisor} starts it again when somebody connects",
            "systemctl stop container.target stops all of it",
        )
    left = sum(
        service.name.startswith("runtime.") and service.state is ServiceState.RUNNING
        for service in status.services
    )
    if left and not containers:
        say(
            f"{left} container{'s go' if left > 1 else ' goes'} on running",
            'the next start finds them; "container system stop --containers" stops them too',
        )
