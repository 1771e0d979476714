"""Removing what is left of a run, whoever made it: each step is done even if another fails."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Awaitable
from pathlib import Path

import trio

from container.runtime.bundle import BundleFiles
from container.runtime.machinery import Machinery

KILL_SECONDS = 10.0
"""From SIGKILL to the end of a process, which only a wedged kernel takes."""
_log = logging.getLogger(__name__)


def bounded(seconds: float) -> trio.CancelScope:
    """Return a scope for clean-up: no cancellation cuts it short, but its deadline does."""
    return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)


async def attempt(what: str, work: Awaitable[None]) -> None:
    """Do one step of a tear-down; the next ones are done even if it fails."""
    try:
        await work
    except Exception:
        _log.exception("can't %s", what)


async def sweep(files: BundleFiles, machinery: Machinery) -> None:
    """Remove what is left of a run: processes, control group, mount, bundle."""
    cgroup = machinery.cgroup

    def kill_again() -> None:
        cgroup.kill()
        cgroup.thaw()

    if not there(files.folder):
        await trio.lowlevel.checkpoint()
        return
    with trio.move_on_after(KILL_SECONDS):
        # A process may fork between the kill and its own end: killed again until none is left.
        while not await trio.to_thread.run_sync(cgroup.remove):
            await trio.to_thread.run_sync(kill_again)
    await attempt("unmount the root", machinery.root.unmount())
    await trio.to_thread.run_sync(lambda: shutil.rmtree(files.folder, ignore_errors=True))


def there(path: Path) -> bool:
    """Return whether there is something: one look at the disk, which no thread is worth."""
    return os.path.lexists(path)
