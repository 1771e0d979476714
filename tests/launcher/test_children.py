"""The processes of a launcher that are not its children."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from container.launcher.children import Children

Parent = subprocess.Popen[bytes]

PARENT = """
import os, sys
child = os.fork()
if not child:
    {end}
print(child, flush=True)
sys.stdin.read()  # and reaps nothing
"""


@pytest.fixture
def parent(end: str) -> Iterator[Parent]:
    """Run a process that has a child, which ends so, and leave it unreaped."""
    command = (sys.executable, "-Ic", PARENT.format(end=end))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        yield parent
        assert parent.stdin
        parent.stdin.close()


@pytest.mark.parametrize(
    ("end", "status"), [("os._exit(7)", 7), ("os.kill(os.getpid(), 9)", 137), ("os._exit(0)", 0)]
)
async def test_how_an_adopted_process_ended_is_known_before_its_parent_asks(
    parent: Parent, status: int
) -> None:
    assert parent.stdout
    process = Children().add(int(await trio.to_thread.run_sync(parent.stdout.readline)))
    with trio.fail_after(20):
        assert await process.wait() == status
    process.close()
