"""A launcher that kills itself at one step of a start: `dying.py STEP`.

A program of its own, so that what is replaced here is replaced in no other process.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from container.contracts.launcher import ServiceState
from container.ipc.spawning.asking import ZygoteLink
from container.launcher import process, service, spawner, supervision
from container.launcher.children import Children
from container.launcher.descriptors import DescriptorStore

NAME = "one"
"""The service at whose start it dies."""


def die() -> None:
    """End as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, matters: Callable[..., bool]) -> None:
    """Die when a function is called with arguments that matter."""
    original = getattr(owner, name)

    def dying(*arguments: Any, **options: Any) -> Any:
        if matters(*arguments):
            die()
        return original(*arguments, **options)

    setattr(owner, name, dying)


def after(owner: Any, name: str, matters: Callable[..., bool]) -> None:
    """Die when a function has returned."""
    original = getattr(owner, name)

    def dying(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if matters(*arguments):
            die()
        return result

    setattr(owner, name, dying)


def asked() -> None:
    """Die while the zygote forks: the request is out, the answer unread."""
    original = ZygoteLink._exactly

    async def dying(self: ZygoteLink, *arguments: Any, **options: Any) -> bytes:
        if asking[0]:
            die()
        return await original(self, *arguments, **options)

    asking = [False]

    def note(link: object, request: Any, descriptors: object) -> bool:
        asking[0] = getattr(request, "name", "") == NAME
        return False

    ZygoteLink._exactly = dying  # type: ignore[method-assign]
    before(ZygoteLink, "ask", note)


def known() -> None:
    """Die when the forked process is known; the first that is known is the zygote."""
    calls = itertools.count()
    after(Children, "add", lambda *_: next(calls) > 0)


STEPS: dict[str, Callable[[], None]] = {
    "bind": lambda: after(service, "bind_listener", lambda path: path.name == f"{NAME}.sock"),
    "lend": lambda: before(DescriptorStore, "lent", lambda _, name: name == NAME),
    "ask": lambda: before(ZygoteLink, "fork", lambda _, request, __: request.name == NAME),
    "fork": asked,
    "know": known,
    "limit": lambda: before(spawner, "limit", lambda unit, *_: unit.name == NAME),
    "gate": lambda: after(supervision.Life, "begin", lambda life, *_: life.unit.name == NAME),
    "run": lambda: after(
        supervision.Service,
        "_become",
        lambda one, state: one.unit.name == NAME and state is ServiceState.RUNNING,
    ),
}

if __name__ == "__main__":
    STEPS[sys.argv.pop(1)]()
    sys.exit(process.main())
