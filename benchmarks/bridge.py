"""The rows of a whole container on the default network: what its place in a network costs.

Everything is in a network namespace of its own, both systems: the machine's interfaces and rules
are neither seen nor changed.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks.containers import WARM_UP, Timed, timed
from benchmarks.figures import Figure, Goal
from benchmarks.options import Options
from benchmarks.podman import open_podman
from benchmarks.system import IMAGE, open_system
from benchmarks.worker import PeerUnavailable
from container.network import namespaces
from container.testing.network import NetworkNamespace

PODMAN, NONE = "run.bridge.podman", "run.bridge.none"
NAMES = (PODMAN, NONE)
_BRIDGE = ("run", "--rm", IMAGE, "true")
_NONE = ("run", "--rm", "--network", "none", IMAGE, "true")


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Return milliseconds of `run --rm` on the default network, and of what it is compared with."""
    values: dict[str, list[float]] = {"ours": [], **{name: [] for name in names}}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        try:
            sides = _sides(names, stack, missing)
            for number in range(WARM_UP + options.rounds):
                for name, side in sides.items():
                    taken = side(number)
                    if number >= WARM_UP:
                        values[name].append(taken)
        except (PeerUnavailable, OSError) as error:
            missing = dict.fromkeys(names, str(error))
    peers = {PODMAN: ("podman run --rm, its bridge", 0.35), NONE: ("ours, --network none", 1.5)}
    return [
        Figure(
            name=name,
            peer=peers[name][0],
            unit="ms",
            ours=tuple(values["ours"]) if values[name] else (),
            theirs=tuple(values[name]),
            goal=Goal.AT_MOST,
            limit=peers[name][1],
            note=missing.get(name, ""),
        )
        for name in names
    ]


def _sides(names: Sequence[str], stack: ExitStack, missing: dict[str, str]) -> dict[str, Timed]:
    stack.enter_context(own_network())
    system = stack.enter_context(open_system())
    sides = {"ours": timed(system.argv(*_BRIDGE), system.environment)}
    if NONE in names:
        sides[NONE] = timed(system.argv(*_NONE), system.environment)
    if PODMAN in names:
        try:
            podman = stack.enter_context(open_podman(system.layout, IMAGE))
            podman.call(*_BRIDGE)
            sides[PODMAN] = timed(podman.argv(*_BRIDGE), podman.environment)
        except PeerUnavailable as error:
            missing[PODMAN] = str(error)
    return sides


@contextmanager
def own_network() -> Generator[None]:
    """Have this thread, and all that it starts, in a network namespace of its own.

    Raises:
        OSError: it is not permitted.
    """
    before = namespaces.current()
    try:
        with NetworkNamespace() as namespace:
            namespaces.enter(namespace.fileno())
            try:
                yield
            finally:
                namespaces.enter(before)
    finally:
        os.close(before)
