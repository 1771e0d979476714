"""The launcher's zygote: forks services, and command lines for the fast front.

The mechanism is the framework's (`container.ipc.spawning.zygote`). What is the launcher's own: what
is loaded before anything is forked, and the door. On descriptor 4 command lines of the same user
connect (`frontdoor`); these are forked once, and how they ended is told here.

With `--no-preload` nothing is imported: every service is then exec'd, a fresh interpreter.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pkgutil
import socket
import sys
from collections.abc import Iterator

from container.ipc.spawning import zygote as framework
from container.ipc.spawning.zygote import Step, contract_steps
from container.launcher import commandline, frontdoor

DOOR = 4
"""Where the launcher puts the listening socket of command lines."""
COMMAND_BOUND = 512
"""Command lines at once; one more is left to its own process."""

FIRST = ("trio", "attrs", "cattrs", "msgspec", "container.process", "container.ipc")
PACKAGES = (
    "container.storage",
    "container.contracts",
    "container.apiserver",
    "container.runtime",
    "container.images",
    "container.network",
    "container.cli",
)
LATE = ("rich.console", "rich.table", "rich.text", "rich.progress", "subprocess", "tempfile")
PRELOAD = "CONTAINER_ZYGOTE_PRELOAD"
"""Further modules to import, separated by commas: plugins whose services have an `Entry`."""


def modules() -> Iterator[str]:
    """Yield what to import, what a cold start needs first in front."""
    yield from FIRST
    for package in PACKAGES:
        try:
            path = importlib.import_module(package).__path__
        except ImportError:
            continue
        yield package
        for module in pkgutil.walk_packages(path, package + "."):
            if not module.name.endswith(("__main__", ".front")):
                yield module.name
    yield from LATE
    yield from filter(None, os.environ.get(PRELOAD, "").split(","))


def steps() -> Iterator[Step]:
    """Yield what to do before the first fork, in small steps: imports, then contracts' codecs."""
    for name in modules():
        yield functools.partial(importlib.import_module, name)
    yield from contract_steps()


class Zygote(framework.Zygote):
    """A zygote with a door.

    Args:
        control: Where the launcher asks for services.
        door: Where fronts connect.
        preload: False imports nothing.
    """

    def __init__(self, control: socket.socket, door: socket.socket | None, preload: bool) -> None:
        super().__init__(control, steps() if preload else ())
        self._fronts = 0
        if door is not None:
            self.watch(door, functools.partial(self._open, door))

    def _open(self, door: socket.socket) -> None:
        try:
            connection, _ = door.accept()
        except OSError:
            return
        if self._fronts >= COMMAND_BOUND:
            connection.close()
            return
        connection.setblocking(True)

        def become() -> None:
            self.let_go()
            commandline.answer(connection)

        try:
            self.fork(become, functools.partial(self._tell, connection))
        except OSError:
            connection.close()
            return
        self.own(connection)
        self._fronts += 1

    def _tell(self, connection: socket.socket, status: int) -> None:
        """Tell a front how its command line ended."""
        self._fronts -= 1
        self.disown(connection)
        code = os.waitstatus_to_exitcode(status)
        kind = frontdoor.EXITED if code >= 0 else frontdoor.SIGNALED
        # After a normal end the child has said so already; the front is gone or ignores this.
        with connection, contextlib.suppress(OSError):
            connection.send(kind + bytes([abs(code)]), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def main() -> None:
    """Run the zygote on the descriptors that the launcher gave."""
    arguments = sys.argv[1:]

    def make(control: socket.socket) -> Zygote:
        door: socket.socket | None = None
        if "--door" in arguments:
            os.set_inheritable(DOOR, False)
            door = socket.socket(fileno=DOOR)
        return Zygote(control, door, "--no-preload" not in arguments)

    framework.run(make)
