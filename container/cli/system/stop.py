"""`container system stop`: stop the launcher and all its services, in order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

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

    process: int | None = None
    try:
        async with session.launcher() as launcher:
            with trio.fail_after(QUICK):
                status = await launcher.status()
            with contextlib.suppress(ProcessLookupError):
                process = os.pidfd_open(status.pid)
            with _bounded(session, status.pid):
                await launcher.shutdown(stop_containers=containers)
        # Not with the connection open: it waits until who asked it has the reply and is gone.
        if process is not None:
            with _bounded(session, status.pid):
                await trio.lowlevel.wait_readable(process)
    except PeerGone as gone:
        if gone.fate is Fate.REFUSED:
            say("the system does not run")
            return
        raise
    finally:
        if process is not None:
            os.close(process)
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


@contextlib.contextmanager
def _bounded(session: Session, launcher: int) -> Generator[None]:
    import trio

    try:
        with trio.fail_after(STOPPING):
            yield
    except trio.TooSlowError:
        raise Refused(
            f"the launcher (process {launcher}) did not end within {STOPPING:.0f} s",
            hint=f"see its log in {session.paths.logs}",
        ) from None
