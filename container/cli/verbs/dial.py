"""`container dial`: be connected to a port inside a container, for tools that speak on stdin and
stdout."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.ports import parse_port
from container.cli.session import QUICK, Session

HELP = """Connect to a TCP port inside a running container: stdin goes there, what comes goes to
stdout.

The port need not be published, and the service may listen on the container's 127.0.0.1 alone. Ends
when the other side does.

\b
    printf 'PING\\r\\n' | container dial cache 6379
    ssh -o ProxyCommand='container dial %h 22' web
"""


@click.command("dial", cls=Verb, help=HELP, short_help="Connect to a port inside a container.")
@click.argument("container", metavar="CONTAINER")
@click.argument("port", metavar="PORT")
@click.pass_obj
def command(session: Session, container: str, port: str) -> None:
    """Connect to a port."""
    session.run(_dial, session, container, parse_port(port))


async def _dial(session: Session, container: str, port: int) -> None:
    import socket

    import trio

    from container.cli.streams import Sink, Source, copy

    async with session.containers() as containers:
        with trio.fail_after(QUICK):
            connection = await containers.dial(container, port)
    with connection, socket.socket(fileno=connection.take()) as line:

        async def send() -> None:
            try:
                await copy(Source(0, ours=False), there)
                line.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # what it still has to say is read

        there, here = Sink(line.fileno(), ours=True), Sink(1, ours=False)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await copy(Source(line.fileno(), ours=True), here)
                nursery.cancel_scope.cancel()
        finally:
            here.close()
