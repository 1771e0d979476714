"""The tasks of this process as a tree: their names, and where each of them waits.

With `stackscope` installed (the extra `inspect`) a task's stack goes through what its coroutines
await, async generators and context managers included; without it the innermost frame is found by
following what each coroutine awaits. No value of a program is in it: names, files and lines only.

Source: trio.lowlevel.Task, `child_nurseries`, `coro`; stackscope's documentation.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from typing import Any

import trio
from attrs import frozen

MOST = 10_000
"""Tasks beyond this are left out: a look must not be what ends a process."""
FRAMES = 24
"""Of a stack that is longer the innermost are shown."""


@frozen
class TaskSeen:
    """One task."""

    name: str
    depth: int
    """How many tasks are above it: a list of these, in order, is the tree."""
    nursery: int
    """Which nursery of the task above it runs in, the outermost first."""
    stack: tuple[str, ...]
    """`file:line function`, innermost last."""


def task_tree(*, innermost: bool = False) -> tuple[TaskSeen, ...]:
    """Return all tasks of the running loop, each below the one whose nursery it runs in.

    Args:
        innermost: Show of each stack only where the task waits.
    """
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found: list[TaskSeen] = []
    waiting: list[tuple[trio.lowlevel.Task, int, int]] = [(root, 0, 0)]
    while waiting and len(found) < MOST:
        task, depth, nursery = waiting.pop()
        stack = tuple(_stack(task))
        shown = _innermost(stack) if innermost else stack[-FRAMES:]
        found.append(TaskSeen(task.name, depth, nursery, shown))
        for number, inner in reversed(tuple(enumerate(task.child_nurseries))):
            children = sorted(inner.child_tasks, key=lambda child: child.name, reverse=True)
            waiting += [(child, depth + 1, number) for child in children]
    return tuple(found)


def _stack(task: trio.lowlevel.Task) -> Iterator[str]:
    try:
        import stackscope
    except ImportError:
        yield from _followed(task.coro)
        return
    for frame in stackscope.extract(task.coro).frames:
        if not frame.hide:
            yield _line(frame.pyframe.f_code, frame.lineno)


def _innermost(stack: tuple[str, ...]) -> tuple[str, ...]:
    """Return the line where the program waits, rather than Trio for it."""
    ours = [line for line in stack if not line.startswith(_TRIO)]
    return tuple((ours or stack)[-1:])


_TRIO = os.path.dirname(trio.__file__) + os.sep


def _followed(awaited: Any) -> Iterator[str]:
    """Follow what a coroutine awaits, down to what waits for the loop."""
    for _ in range(1000):
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        frame = frame or getattr(awaited, "ag_frame", None)
        if frame is not None:
            yield _line(frame.f_code, frame.f_lineno)
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
        if awaited is None:
            return


def _line(code: types.CodeType, number: int) -> str:
    return f"{code.co_filename}:{number} {code.co_qualname}"
