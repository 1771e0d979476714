"""`container ipc call`: call a route of any service, its values read by the types it describes."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import click

from container.cli.failure import Refused
from container.cli.groups import Verb
from container.cli.ipc.reaching import ANSWER, reached, socket_argument
from container.cli.ipc.showing import print_value
from container.cli.ipc.values import Arguments, Wrong, parse_json, split_pair
from container.cli.output import format_option
from container.cli.session import Session

if TYPE_CHECKING:
    from container.ipc import Connection, Message
    from container.ipc.describe import ContractDescription, RouteDescription
    from container.ipc.introspection import Introspection

HELP = """Call a route of the service that listens at SOCKET.

ROUTE is `contract/method`, or the method alone if one contract has it. Each ARGUMENT is
name=value, or `-` for a JSON object on standard input. A descriptor is written as @path, which
opens a file for reading, or as fd:0, which passes one that this command has.

A scope is opened, its value is printed, and it is held until Ctrl-C, or for --for seconds. Items of
a stream are printed one a line.
"""


@click.command("call", cls=Verb, help=HELP, short_help="Call a route.")
@socket_argument
@click.argument("route")
@click.argument("arguments", nargs=-1, metavar="[ARGUMENT]...")
@click.option("--json", "document", metavar="OBJECT", help="Arguments as a JSON object.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=ANSWER,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the answer, or for a scope to open; 0 waits for ever.",
)
@click.option(
    "--for",
    "held",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Hold a scope so long.",
)
@format_option()
@click.pass_obj
def command(
    session: Session,
    socket: str,
    route: str,
    arguments: tuple[str, ...],
    document: str | None,
    timeout: float,
    held: float | None,
    output: str,
) -> None:
    """Call a route."""
    given = _Given(arguments, document)
    bound = timeout or math.inf
    session.run(_call, socket, route, given, bound, math.inf if held is None else held, output)


class _Given:
    """The arguments as they were written; standard input is read once."""

    def __init__(self, arguments: Sequence[str], document: str | None) -> None:
        self.pairs = [split_pair(text) for text in arguments if text != "-"]
        documents = [] if document is None else [document]
        if "-" in arguments:
            documents.append(sys.stdin.read())
        self.values: dict[str, Any] = {}
        for text in documents:
            try:
                found = parse_json(text)
            except Wrong as wrong:
                raise Refused(f"the arguments: {wrong}", status=2) from None
            if not isinstance(found, dict):
                raise Refused(
                    "the arguments are no JSON object", hint='write {"name": value}', status=2
                )
            self.values |= cast("dict[str, Any]", found)


async def _call(
    socket: str, path: str, given: _Given, timeout: float, held: float, output: str
) -> None:
    import trio

    from container.ipc import Message, call_message

    async with reached(socket) as (connection, look):
        contract, route = await _find(look, path)
        arguments = Arguments(contract, route)
        try:
            values = arguments.of_json(given.values)
            values |= {name: arguments.of_text(name, text) for name, text in given.pairs}
            arguments.check_complete(values)
            message = Message(route.path, values)
            if route.kind == "scope":
                await _hold(connection, message, route, timeout, held, output)
                return
            try:
                with trio.fail_after(timeout):
                    with await call_message(connection, message) as reply:
                        print_value(reply.value("value"), output)
            except trio.TooSlowError:
                raise _too_slow(route.path, timeout) from None
        finally:
            arguments.close()


async def _find(look: Introspection, path: str) -> tuple[ContractDescription, RouteDescription]:
    import trio

    with trio.fail_after(ANSWER):
        description = await look.describe()
    known = [(contract, route) for contract in description.contracts for route in contract.routes]
    found = [pair for pair in known if path in (pair[1].path, pair[1].path.partition("/")[2])]
    exact = [pair for pair in found if pair[1].path == path]
    if len(exact or found) == 1:
        return (exact or found)[0]
    names = [route.path for _, route in (found or known)]
    if found:
        raise Refused(f'"{path}" is a route of several contracts', hint=", ".join(names), status=2)
    from difflib import get_close_matches

    close = get_close_matches(path, names, n=1, cutoff=0.4)
    raise Refused(
        f'{description.process} has no route "{path}"',
        hint=f'did you mean "{close[0]}"?' if close else 'see "container ipc describe"',
        status=2,
    )


async def _hold(
    connection: Connection,
    message: Message,
    route: RouteDescription,
    timeout: float,
    held: float,
    output: str,
) -> None:
    """Open a scope, print its value, and hold it until a signal comes or its time is over."""
    import trio

    from container.ipc import open_message

    # Not `fail_after` around the opening alone: the scope outlives it.
    with trio.CancelScope(deadline=trio.current_time() + timeout) as opening:
        async with open_message(connection, message) as value:
            opening.deadline = math.inf
            async with _until_signal(held):
                if route.result.kind == "receiver":
                    async for item in value.receiver("value"):
                        print_value(item, "line" if output == "table" else "json-line")
                    return
                print_value(value.value("value"), output)
                await trio.sleep_forever()
    if opening.cancelled_caught:
        raise _too_slow(route.path, timeout)


@asynccontextmanager
async def _until_signal(seconds: float) -> AsyncGenerator[None]:
    """Leave the block, as if it had ended, when Ctrl-C or SIGTERM comes or the time is over.

    So the scope around it is closed, and its clean-up awaited, rather than cancelled.
    """
    import trio

    async def wait(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            ready.set()
            async for _ in signals:
                scope.cancel()

    ready = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, nursery.cancel_scope)
        await ready.wait()
        nursery.cancel_scope.deadline = trio.current_time() + seconds
        yield
        nursery.cancel_scope.cancel()


def _too_slow(path: str, timeout: float) -> Refused:
    return Refused(
        f"{path} did not answer within {timeout:g} s", hint="--timeout gives it longer, 0 for ever"
    )
