"""Leak checks: as many descriptors, child processes and Trio tasks after a block as before it.

What ends a step later than the block is waited for, bounded: a caller may have its reply before the
handler, whose reply it is, has closed its own.
"""

from __future__ import annotations

import gc
import os
import time
from types import TracebackType
from typing import Self

import trio
import trio.testing
from attrs import field, frozen

from container.ipc import reading

STEP = 0.005
"""Seconds between two looks at a process that has not come to rest."""

LATE_TASKS = {"connection writer", "connection timers", "connection pings"}
"""What a connection starts for itself, when it is first needed, and keeps while it lives."""


class LeakFound(AssertionError):
    """A block left something open; the message names each thing."""


def open_descriptors() -> dict[int, str]:
    """Return what this process has open: descriptor and what it refers to."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the descriptor of the listing itself
    return found


def child_processes() -> dict[int, str]:
    """Return this process's children, zombies too: process id, and what it is called.

    Source: proc_pid_task_tid_children(5).
    """
    found: dict[int, str] = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/children") as file:
                pids = [int(word) for word in file.read().split()]
        except FileNotFoundError:
            continue  # a thread that has ended since
        for pid in pids:
            try:
                with open(f"/proc/{pid}/stat") as file:
                    _, _, rest = file.read().partition("(")
            except FileNotFoundError:
                continue
            name, _, state = rest.rpartition(") ")
            found[pid] = f"{name}, a zombie" if state.startswith("Z") else name
    return found


def running_tasks() -> dict[trio.lowlevel.Task, str]:
    """Return the tasks of the Trio run that this thread is in, but Trio's own; none outside."""
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        return {}
    if root is None:
        return {}
    # The root task's innermost nursery has the main task alone; the others have Trio's own.
    waiting = list(root.child_nurseries[-1].child_tasks)
    found: dict[trio.lowlevel.Task, str] = {}
    while waiting:
        task = waiting.pop()
        found[task] = task.name
        for nursery in task.child_nurseries:
            waiting.extend(nursery.child_tasks)
    return found


@frozen
class OpenThings:
    """What was open at one moment."""

    descriptors: dict[int, str] = field(factory=open_descriptors)
    processes: dict[int, str] = field(factory=child_processes)
    tasks: dict[trio.lowlevel.Task, str] = field(factory=running_tasks)

    def missing_from(self, earlier: OpenThings) -> list[str]:
        """Name what is open now and was not then, if there is more of it than then."""
        found: list[str] = []
        for kind, now, then in (
            ("descriptor", self.descriptors, earlier.descriptors),
            ("process", self.processes, earlier.processes),
        ):
            if len(now) > len(then):
                # A number may have been used again: what it refers to tells.
                new = [number for number, what in now.items() if then.get(number) != what]
                found += [f"{kind} {number} ({now[number]})" for number in new]
        return found + [
            f"task {name}"
            for task, name in self.tasks.items()
            if task not in earlier.tasks and not _of_open_connection(task, earlier)
        ]


def _of_open_connection(task: trio.lowlevel.Task, earlier: OpenThings) -> bool:
    """Is this one of the tasks that a connection makes for itself when it first needs them?"""
    nursery = task.parent_nursery
    if nursery is None:
        return False
    parent = nursery.parent_task
    code = getattr(task.coro, "cr_code", None)
    if task.name in LATE_TASKS:
        return parent in earlier.tasks or _of_open_connection(parent, earlier)
    return parent in earlier.tasks and code is not None and code.co_filename == reading.__file__


class no_leaks:
    """Expect no descriptor, child process or task more after a block than before it.

    `async with no_leaks():` inside a Trio run, `with no_leaks():` around one. A block that raises
    is not looked at. Fewer than before is no leak, nor are the tasks that a connection which was
    open before has made for itself.

    Args:
        within: Seconds of real time that what is ending may take.

    Raises:
        LeakFound: more is open; names each thing that is new.
    """

    def __init__(self, *, within: float = 1.0) -> None:
        self._within = within
        self._before: OpenThings | None = None

    def __enter__(self) -> Self:
        self._before = OpenThings()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        until = time.monotonic() + self._within
        while error is None and self._leaks(until):
            # Nothing tells when a process of somebody else's has closed its end.
            time.sleep(STEP)

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        until = time.monotonic() + self._within
        with trio.CancelScope(shield=True):
            while error is None and self._leaks(until):
                # As above; and a mock clock does not jump while this waits.
                await trio.testing.wait_all_tasks_blocked(STEP)

    def _leaks(self, until: float) -> bool:
        """Return whether something is left open that may still be closed in time."""
        assert self._before is not None
        if not OpenThings().missing_from(self._before):
            return False
        if time.monotonic() <= until:
            return True
        gc.collect()  # an exception's traceback may hold what its owner dropped
        found = OpenThings().missing_from(self._before)
        if found:
            raise LeakFound("left open: " + ", ".join(found))
        return False
