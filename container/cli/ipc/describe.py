"""`container ipc describe`: the routes of a service, their types and what they are for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from container.cli.groups import Verb
from container.cli.ipc.reaching import ANSWER, reached, socket_argument
from container.cli.output import format_option, plain, print_json
from container.cli.session import Session

if TYPE_CHECKING:
    from container.ipc.describe import ClassDescription, ContractDescription, FieldDescription
    from container.ipc.introspection import ServiceDescription, ServiceStatistics

HELP = """Show what a service offers: its contracts, their routes and types.

`->` stands before the result of a call, `=>` before the value of a scope, which is held until its
holder leaves.
"""
WIDTH = 78


@click.command("describe", cls=Verb, help=HELP)
@socket_argument
@click.option("-a", "--all", "everything", is_flag=True, help="Show what every service offers too.")
@format_option()
@click.pass_obj
def command(session: Session, socket: str, everything: bool, output: str) -> None:
    """Show a service."""
    session.run(_describe, socket, everything, output)


async def _describe(socket: str, everything: bool, output: str) -> None:
    import trio

    async with reached(socket) as (_, look):
        with trio.fail_after(ANSWER):
            description = await look.describe()
            statistics = await look.statistics()
    contracts = [c for c in description.contracts if everything or not _is_built_in(c)]
    if output == "json":
        shown = {**plain(description), "contracts": plain(contracts)}
        print_json({**shown, "statistics": plain(statistics)})
        return
    for line in _head(description, statistics):
        print(line)
    for contract in contracts:
        for line in _contract(contract, statistics):
            print(line.rstrip())


def _is_built_in(contract: ContractDescription) -> bool:
    from container.ipc.built_in import CONTRACT

    return contract.name == CONTRACT


def _head(description: ServiceDescription, statistics: ServiceStatistics) -> Iterator[str]:
    yield f"process      {description.process} (pid {description.pid})"
    yield f"build        {description.build}"
    refused = f", {statistics.refused} refused" if statistics.refused else ""
    yield f"connections  {statistics.connections} open, {statistics.accepted} accepted{refused}"


def _contract(contract: ContractDescription, statistics: ServiceStatistics) -> Iterator[str]:
    in_flight = {route.path: route.in_flight for route in statistics.routes}
    yield ""
    yield f"{contract.name} {contract.version}  (fingerprint {contract.fingerprint})"
    yield from _wrapped(contract.documentation, 2)
    for route in contract.routes:
        yield ""
        yield from _signature(
            f"  {route.path}(", route.parameters, _end(route.kind, route.result.text)
        )
        yield from _wrapped(route.documentation, 6)
        if route.path in in_flight:
            yield f"      in flight: {in_flight[route.path]}"
    for entry in contract.classes:
        yield ""
        yield from _class(entry)


def _end(kind: str, result: str) -> str:
    return f") {'->' if kind == 'call' else '=>'} {result}"


def _signature(begin: str, parameters: Sequence[FieldDescription], end: str) -> Iterator[str]:
    shown = [_typed(parameter) for parameter in parameters]
    line = f"{begin}{', '.join(shown)}{end}"
    if len(line) <= WIDTH or not shown:
        yield line
        return
    yield begin
    for text in shown:
        yield f"      {text},"
    yield f"  {end}"


def _typed(field: FieldDescription) -> str:
    default = "" if field.default is None else f" = {field.default}"
    return f"{field.name}: {field.type.text}{default}"


def _class(entry: ClassDescription) -> Iterator[str]:
    if entry.kind == "enum":
        yield f"  {entry.name}: one of {', '.join(map(str, entry.values))}"
        yield from _wrapped(entry.documentation, 6)
        return
    yield f"  {entry.name}"
    yield from _wrapped(entry.documentation, 6)
    for field in entry.fields:
        yield f"    {_typed(field)}"
        yield from _wrapped(field.documentation, 8)


def _wrapped(text: str, indent: int) -> Iterator[str]:
    import textwrap

    for line in text.splitlines():
        margin = " " * (indent + len(line) - len(line.lstrip()))
        yield from textwrap.wrap(
            line.strip(), WIDTH, initial_indent=margin, subsequent_indent=margin
        ) or [""]
