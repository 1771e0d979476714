"""Locks between processes: held by a descriptor, gone with their holder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from container.storage.locks import lock, try_lock

HOLDER = """
import sys, time
from pathlib import Path
from container.storage.locks import try_lock
held = try_lock(Path(sys.argv[1]))
print(held is not None, flush=True)
time.sleep(60)
"""


def test_a_lock_is_taken_once_and_again_after_its_release(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = try_lock(path)
    assert held is not None
    assert held.held
    assert try_lock(path) is None
    held.release()
    held.release()
    assert not held.held
    with try_lock(path) or pytest.fail("it was released") as again:
        assert again.held
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_killed_holder_gives_it_up(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert try_lock(path) is None
        holder.kill()
    with try_lock(path) or pytest.fail("its holder is dead"):
        pass


async def test_a_waiter_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = await lock(path)
    taken = trio.Event()

    async def wait() -> None:
        with await lock(path):
            taken.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.05)
            assert not taken.is_set()
            first.release()


async def test_a_cancelled_waiter_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = await lock(path)
    with trio.move_on_after(0.05) as scope:
        await lock(path)
    assert scope.cancelled_caught
    first.release()
    with trio.fail_after(10):
        with await lock(path):
            pass


async def test_who_waits_for_a_removed_file_locks_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = await lock(path)
    got: list[bool] = []

    async def wait() -> None:
        with await lock(path):
            got.append(path.exists() and try_lock(path) is None)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.05)
            first.release(remove=True)
    assert got == [True]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        try_lock(tmp_path / "lock")
    assert os.listdir(tmp_path) == ["lock"]
