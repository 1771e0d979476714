"""`container ipc monitor`: the calls of a service as they happen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from container.cli.groups import Verb
from container.cli.ipc.reaching import reached, socket_argument
from container.cli.output import plain
from container.cli.session import Session

if TYPE_CHECKING:
    from container.ipc.monitoring import Seen

HELP = """Watch the calls of a service as they happen, until Ctrl-C.

One line a step: when, the caller's process and user, what happened, the route, its size and how
long it took. Of arguments only names and types are shown. Calls that look at the service, as this
command's own, are left out without --all.
"""


@click.command("monitor", cls=Verb, help=HELP, short_help="Watch the calls of a service.")
@socket_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--values", is_flag=True, help="Show values of arguments too.")
@click.option(
    "-a", "--all", "everything", is_flag=True, help="Show calls that look at the service too."
)
@click.pass_obj
def command(session: Session, socket: str, as_json: bool, values: bool, everything: bool) -> None:
    """Watch a service."""
    session.run(_monitor, socket, as_json, values, everything)


async def _monitor(socket: str, as_json: bool, values: bool, everything: bool) -> None:
    from container.ipc.built_in import CONTRACT

    async with reached(socket) as (_, look), look.watch(values) as steps:
        if not as_json:
            print(f"{'TIME':<12}  {'PID/UID':<10}  {'STEP':<9}  ROUTE", flush=True)
        async for seen in steps:
            if not everything and seen.route.startswith(f"{CONTRACT}/"):
                continue
            print(json.dumps(plain(seen)) if as_json else _line(seen), flush=True)


def _line(seen: Seen) -> str:
    missed = f"  ({seen.missed} steps were missed)\n" if seen.missed else ""
    when = seen.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    who = f"{seen.pid}/{seen.uid}" if seen.uid >= 0 else "-"
    return f"{missed}{when}  {who:<10}  {seen.kind:<9}  {seen.route}{_rest(seen)}"


def _rest(seen: Seen) -> str:
    if seen.kind in ("connected", "lost"):
        return f"({seen.outcome})"
    found: list[str] = []
    if seen.kind == "call":
        found.append(f"({', '.join(seen.arguments)})")
    if seen.kind in ("ended", "refused", "closing") and (
        seen.outcome != "ok" or seen.kind == "ended"
    ):
        found.append(f"  {seen.outcome}")
    if seen.size:
        found.append(f"  {_bytes(seen.size)}")
    if seen.kind in ("ended", "opened") and seen.seconds:
        found.append(f"  {_duration(seen.seconds)}")
    return "".join(found)


def _bytes(size: int) -> str:
    return f"{size} B" if size < 10_000 else f"{size / 1024:.0f} KiB"


def _duration(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
