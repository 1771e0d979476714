"""Which service comes before which: `requires` and `after` as one graph without circles.

`after` orders two services that are started, or stopped, at the same time. `requires` does so too,
and more: what is required is started by whoever starts the other, must be ready, and is stopped
after it. (In systemd `Requires=` alone orders nothing, which few want.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from container.contracts.launcher import ServiceUnit
from container.ipc import InvalidArgument


def before(unit: ServiceUnit) -> tuple[str, ...]:
    """Return the names of the services that a unit comes after."""
    return tuple(dict.fromkeys((*unit.requires, *unit.after)))


def in_order(units: Sequence[ServiceUnit]) -> tuple[ServiceUnit, ...]:
    """Return units so that each comes after those that it names, else in the given order.

    Names that are not among them do not count.

    Raises:
        InvalidArgument: they wait for each other; the message names the circle.
    """
    by_name = {unit.name: unit for unit in units}
    done: dict[str, ServiceUnit] = {}

    def place(unit: ServiceUnit, path: tuple[str, ...]) -> None:
        if unit.name in path:
            circle = " → ".join((*path[path.index(unit.name) :], unit.name))
            raise InvalidArgument(f"units start after each other: {circle}")
        if unit.name in done:
            return
        for name in before(unit):
            if name in by_name:
                place(by_name[name], (*path, unit.name))
        done[unit.name] = unit

    for unit in units:
        place(unit, ())
    return tuple(done.values())


def dependents(name: str, units: Iterable[ServiceUnit]) -> tuple[ServiceUnit, ...]:
    """Return the units that require a service, directly or through others."""
    found: dict[str, ServiceUnit] = {}
    names = {name}
    known = tuple(units)
    while names:
        requiring = [
            unit for unit in known if unit.name not in found and names.intersection(unit.requires)
        ]
        found |= {unit.name: unit for unit in requiring}
        names = {unit.name for unit in requiring}
    return tuple(found.values())


async def each(
    units: Sequence[ServiceUnit],
    work: Callable[[str], Awaitable[None]],
    *,
    backwards: bool = False,
) -> None:
    """Do something for each unit, for all at once that the order allows; return when all is done.

    Args:
        units: Without a circle.
        work: Called with a unit's name; deals with its failures itself.
        backwards: Each comes before those that it names: the order of a stop.
    """
    done = {unit.name: trio.Event() for unit in units}
    waits: dict[str, set[str]] = {unit.name: set() for unit in units}
    for unit in units:
        for name in before(unit):
            if name in done:
                first, second = (unit.name, name) if backwards else (name, unit.name)
                waits[second].add(first)

    async def one(name: str) -> None:
        for other in waits[name]:
            await done[other].wait()
        await work(name)
        done[name].set()

    async with trio.open_nursery() as nursery:
        for name in done:
            nursery.start_soon(one, name)
