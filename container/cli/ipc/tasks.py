"""`container ipc tasks`: the task tree of a running service."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from container.cli.groups import Verb
from container.cli.ipc.reaching import ANSWER, reached, socket_argument
from container.cli.output import format_option, print_json
from container.cli.session import Session

if TYPE_CHECKING:
    from container.ipc.tasks import TaskSeen

HELP = """Show the tasks of a service as a tree, and where each of them waits.

--stacks shows how each of them came there.
"""


@click.command("tasks", cls=Verb, help=HELP, short_help="Show the tasks of a service.")
@socket_argument
@click.option("-s", "--stacks", is_flag=True, help="Show whole stacks.")
@format_option()
@click.pass_obj
def command(session: Session, socket: str, stacks: bool, output: str) -> None:
    """Show the tasks of a service."""
    session.run(_tasks, socket, stacks, output)


async def _tasks(socket: str, stacks: bool, output: str) -> None:
    import trio

    async with reached(socket) as (_, look):
        with trio.fail_after(ANSWER):
            tasks = await look.tasks(not stacks)
    if output == "json":
        print_json(tasks)
        return
    for line in _tree(tasks, stacks):
        print(line)


def _tree(tasks: Sequence[TaskSeen], stacks: bool) -> list[str]:
    lines: list[str] = []
    for number, task in enumerate(tasks):
        margin = "".join(
            "│  " if _goes_on(tasks, number, depth) else "   " for depth in range(1, task.depth)
        )
        branch = ""
        if task.depth:
            branch = "├─ " if _goes_on(tasks, number, task.depth) else "└─ "
        name = task.name.replace("container.ipc.", "")
        below = "│  " if branch == "├─ " else "   " if branch else ""
        has_child = number + 1 < len(tasks) and tasks[number + 1].depth > task.depth
        where = [_short(line) for line in task.stack]
        if stacks:
            lines.append(f"{margin}{branch}{name}")
            lines += [f"{margin}{below}{'│' if has_child else ' '}    {line}" for line in where]
        else:
            lines.append(f"{margin}{branch}{name}" + "".join(f"  ({line})" for line in where))
    return lines


def _goes_on(tasks: Sequence[TaskSeen], number: int, depth: int) -> bool:
    """Does a sibling at this depth follow below?"""
    for later in tasks[number + 1 :]:
        if later.depth <= depth:
            return later.depth == depth
    return False


def _short(line: str) -> str:
    """Return `folder/file.py:12 name` of a line whose path is long."""
    place, _, function = line.partition(" ")
    parts = place.split(os.sep)
    return f"{os.sep.join(parts[-2:])} {function.rpartition('.')[2]}"
