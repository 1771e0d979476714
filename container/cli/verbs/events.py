"""`container events`: what happens to containers, as it happens."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from container.cli.durations import parse_moment
from container.cli.failure import UsageRefused, say
from container.cli.groups import Verb
from container.cli.output import format_option, plain
from container.cli.session import Session

if TYPE_CHECKING:
    from container.contracts.apiserver import Event, EventFilter, EventKind

HELP = """Show what happens to containers, one line an event, until Ctrl-C or the system stops.

--since shows earlier events first, as far as the system remembers them; --until ends at a time.
Both take a time (2026-01-31T12:00:00), seconds since 1970, or how long ago (10m).

Filters are container=NAME and event=KIND. Several with one key want any of them, different keys all
of them. Kinds: create, start, die, oom, kill, stop, restart, pause, unpause, health_status,
destroy.

\b
    container events
    container events --since 10m --until 0s --format json
    container events -f container=web -f event=die -f event=health_status
"""


@click.command("events", cls=Verb, help=HELP, short_help="Show what happens to containers.")
@click.option("--since", metavar="TIME", help="Begin with the events since then.")
@click.option("--until", metavar="TIME", help="End at that time.")
@click.option(
    "-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Show these alone."
)
@format_option()
@click.pass_obj
def command(
    session: Session, since: str | None, until: str | None, filters: tuple[str, ...], output: str
) -> None:
    """Show events."""
    session.run(_events, session, event_filter(filters, since, until), output)


def event_filter(filters: tuple[str, ...], since: str | None, until: str | None) -> EventFilter:
    """Return what `--filter`, `--since` and `--until` ask for.

    Raises:
        UsageRefused: one makes no sense.
    """
    from container.contracts.apiserver import EventFilter

    containers: list[str] = []
    kinds: list[EventKind] = []
    for text in filters:
        key, _, value = text.partition("=")
        if not value or key not in ("container", "event"):
            raise UsageRefused(
                f'"{text}" is no filter: use container=NAME or event=KIND, as in event=die'
            )
        if key == "container":
            containers.append(value)
        else:
            kinds.append(_kind(value))
    return EventFilter(
        containers=tuple(containers),
        kinds=tuple(kinds),
        since=None if since is None else parse_moment(since),
        until=None if until is None else parse_moment(until),
    )


def _kind(text: str) -> EventKind:
    from container.contracts.apiserver import EventKind

    try:
        return EventKind(text)
    except ValueError:
        known = ", ".join(kind.value for kind in EventKind)
        raise UsageRefused(f'"{text}" is no kind of event', hint=f"kinds: {known}") from None


async def _events(session: Session, wanted: EventFilter, output: str) -> None:
    from attrs import evolve

    from container.cli.reconnecting import comes_back
    from container.ipc import PeerGone, ScopeEnded, Unavailable

    began = datetime.now(UTC)
    connected = False
    while True:
        try:
            async with session.containers(start=not connected) as containers:
                async with containers.events(wanted) as events:
                    connected = True
                    async for event in events:
                        _show(event, output)
                        wanted = evolve(wanted, since=None, after=event.sequence)
            return
        except (PeerGone, ScopeEnded, Unavailable):  # the last is said by a server that stops
            if not connected:
                raise
        if wanted.after is None and wanted.since is None:
            wanted = evolve(wanted, since=began)
        if not await comes_back(session):
            say("the system has stopped")
            return
        say("the API server was restarted: what happened meanwhile may be missing")


def _show(event: Event, output: str) -> None:
    if event.missed:
        say(f"{event.missed} events were missed: they came faster than they were read")
    if output == "json":
        print(json.dumps(plain(event), sort_keys=True, ensure_ascii=False), flush=True)
        return
    rest = ", ".join(f"{key}={value}" for key, value in sorted(event.attributes.items()))
    when = event.time.astimezone().strftime("%Y-%m-%dT%H:%M:%S.%f%z")
    line = f"{when}  {event.container}  {event.name}  {event.kind.value}  {rest}"
    print(line.rstrip(), flush=True)
