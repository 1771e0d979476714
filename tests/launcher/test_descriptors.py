"""What the launcher keeps: for whom, how much, until when; and how orphans ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
import trio
from attrs import evolve

from container.contracts.launcher import Restart
from container.ipc import Fd, InvalidArgument, NotFound, Overloaded, PermissionDenied
from container.launcher import descriptors
from container.launcher.descriptors import SERVICE_BOUND, DescriptorStore, ancestry
from container.storage.paths import Paths

from .conftest import System, ask, running, unit, until


def pipe() -> Fd:
    """Return the reading end of a pipe that hung up."""
    out, into = os.pipe()
    os.close(into)
    return Fd(out)


@pytest.fixture
def store() -> DescriptorStore:
    """An empty store of at most two more than one service may have."""
    return DescriptorStore(bound=SERVICE_BOUND + 2)


# --- the store ---


def test_names_are_in_the_order_in_which_they_came(store: DescriptorStore) -> None:
    for name in ("b", "a", "c"):
        store.keep("one", name, pipe())
    with store.lent("one") as lent:
        assert list(lent) == ["b", "a", "c"]
    store.close()
    assert store.names("one") == ()


def test_the_same_name_again_replaces_and_closes_what_it_had(store: DescriptorStore) -> None:
    store.keep("one", "a", pipe())
    ours, theirs = os.pipe()
    store.keep("one", "b", Fd(ours))
    store.keep("one", "b", pipe())
    with pytest.raises(BrokenPipeError):
        os.write(theirs, b"x")
    os.close(theirs)
    assert store.names("one") == ("a", "b")
    store.close()


def test_what_is_dropped_while_it_is_lent_is_there_to_the_end_of_the_block(
    store: DescriptorStore,
) -> None:
    store.keep("one", "a", pipe())
    with store.lent("one") as lent:
        store.drop("one", "a")
        os.fstat(lent["a"])
    with pytest.raises(OSError):
        os.fstat(lent["a"])


def test_too_many_are_refused_and_change_nothing(store: DescriptorStore) -> None:
    for number in range(SERVICE_BOUND):
        store.keep("one", str(number), pipe())
    with pipe() as further:
        with pytest.raises(Overloaded, match='"one"'):
            store.keep("one", "further", further)
        os.fstat(further.fileno())
    store.keep("one", "0", pipe())
    for number in range(2):
        store.keep("two", str(number), pipe())
    with pipe() as further, pytest.raises(Overloaded, match=f"{SERVICE_BOUND + 2} descriptors"):
        store.keep("three", "x", further)
    store.drop("one")
    store.keep("three", "x", pipe())
    store.close()


@pytest.mark.parametrize("name", ["", "a:b", "é", "a\n", "x" * 256, "one"])
def test_a_name_that_can_t_be_passed_on_is_refused(store: DescriptorStore, name: str) -> None:
    with pipe() as given, pytest.raises(InvalidArgument):
        store.keep("one", name, given)
    assert store.names("one") == ()


def test_the_ancestry_ends_below_the_first_process_and_by_a_bound() -> None:
    parents = {5: 4, 4: 3, 3: 1}
    assert ancestry(5, lambda pid: parents.get(pid, 0)) == (5, 4, 3)
    assert len(ancestry(5, lambda pid: pid)) == descriptors.ANCESTORS_BOUND
    assert ancestry(os.getpid())[:2] == (os.getpid(), os.getppid())
    assert descriptors.parent(2**30) == 0


# --- the service ---


async def test_what_a_service_keeps_its_next_process_gets_after_its_socket(
    system: System,
) -> None:
    path = await system.launcher.register(unit("one", "proper"))
    for name in ("b", "a"):
        assert (await ask(path, f"keep one {name} {name}{name}"))["answer"] is None
    first = (await ask(path, "kept"))["pid"]
    os.kill(first, signal.SIGKILL)
    found = await ask(path, "kept")
    assert found["pid"] != first
    assert found["answer"] == [["b", "bb"], ["a", "aa"]]
    os.kill(found["pid"], signal.SIGKILL)
    # Still kept: what is read from a pipe is read, the pipe stays.
    assert (await ask(path, "kept"))["answer"] == [["b", ""], ["a", ""]]
    await ask(path, "drop one b")
    await system.launcher.stop("one")
    assert (await ask(path, "kept"))["answer"] == [["a", ""]]
    await ask(path, "drop one")
    await system.launcher.stop("one")
    assert (await ask(path, "kept"))["answer"] == []


async def test_a_service_without_a_socket_gets_what_was_kept_too(
    system: System, tmp_path: Path
) -> None:
    program = tmp_path / "keep.py"
    note = tmp_path / "note"
    program.write_text(
        "import os, time, trio\n"
        "from container.contracts.launcher import Launcher\n"
        "from container.ipc import Fd\n"
        f"with open({str(note)!r}, 'a') as file:\n"
        "    print(os.environ.get('LISTEN_FDNAMES'), file=file)\n"
        "if 'LISTEN_FDS' in os.environ:\n"
        "    assert os.environ['LISTEN_PID'] == str(os.getpid())\n"
        "    os.fstat(3)\n"
        "    time.sleep(100)\n"
        "async def main():\n"
        f"    async with Launcher.connect({str(system.paths.launcher_socket)!r}) as launcher:\n"
        "        await launcher.keep('one', 'x', Fd.borrow(0))\n"
        "trio.run(main)\n"
        "raise SystemExit(1)\n"
    )
    one = evolve(unit("one", listen=None), entry=None, command=(sys.executable, str(program)))
    await system.launcher.register(one)
    await until(lambda: note.exists() and note.read_text() == "None\nx\n")


async def test_no_other_process_keeps_for_a_service(system: System) -> None:
    path = await system.launcher.register(unit("one", "proper"))
    other = await system.launcher.register(unit("two", "proper"))
    await ask(path)
    with pipe() as given:
        with pytest.raises(PermissionDenied, match="may not keep"):
            await system.launcher.keep("one", "a", given)
        with pytest.raises(NotFound):
            await system.launcher.keep("nobody", "a", given)
    assert "may not keep" in (await ask(other, "keep one a x"))["answer"]
    with pytest.raises(PermissionDenied):
        await system.launcher.drop("one", "")
    await system.launcher.drop("nobody", "")


async def test_what_was_kept_goes_with_the_removal_of_its_service(system: System) -> None:
    path = await system.launcher.register(unit("one", "proper"))
    await ask(path, "keep one a x")
    await system.launcher.remove("one")
    await system.launcher.register(unit("one", "proper"))
    assert (await ask(path, "kept"))["answer"] == []


async def test_a_service_that_outlived_the_launcher_has_the_next_one_keep_for_it(
    paths: Paths,
) -> None:
    lasting = unit("lasting", "proper", outlives_launcher=True)
    async with running(paths) as system:
        path = await system.launcher.register(lasting)
        await ask(path, "keep lasting a x")
        os.kill((await system.launcher.status()).pid, signal.SIGKILL)
    async with running(paths) as system:
        assert await system.launcher.register(lasting) == path
        refused = (await ask(path, "keep lasting a y"))["answer"]
        assert "may not keep" in refused
        first = (await ask(path, "adopt lasting lasting.sock"))["pid"]
        assert (await ask(path, "keep lasting a y"))["answer"] is None
        os.kill(first, signal.SIGKILL)
        assert (await ask(path, "kept"))["answer"] == [["a", "y"]]


async def test_starts_kills_and_what_was_kept_leave_no_descriptor_in_the_launcher(
    system: System,
) -> None:
    launcher = (await system.launcher.status()).pid

    async def cycle() -> None:
        path = await system.launcher.register(unit("one", "proper", restart_limit=100))
        for name in ("a", "b", "a"):
            await ask(path, f"keep one {name} x")
        os.kill((await ask(path))["pid"], signal.SIGKILL)
        await ask(path, "drop one b")
        assert "can't be kept" in (await ask(path, "keep one bad:name x"))["answer"]
        await system.launcher.remove("one")

    def open_now() -> list[str]:
        found: list[str] = []
        for number in os.listdir(f"/proc/{launcher}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{launcher}/fd/{number}").partition(":")[0])
        return sorted(found)

    await cycle()
    before = open_now()
    for _ in range(5):
        await cycle()
    # Connections of the service's own end a moment after it.
    await until(lambda: open_now() == before)


async def test_how_an_orphan_ended_is_told_once(system: System, tmp_path: Path) -> None:
    program = tmp_path / "fork.py"
    note = tmp_path / "note"
    program.write_text(
        "import os, time\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    time.sleep(0.2)\n"
        "    os._exit(7)\n"
        f"open({str(note)!r}, 'w').write(str(child))\n"
    )
    forking = evolve(
        unit("one", listen=None, restart=Restart.NO),
        entry=None,
        command=(sys.executable, str(program)),
    )
    await system.launcher.register(forking)
    await until(lambda: note.exists() and note.read_text() != "")
    orphan = int(note.read_text())
    with contextlib.suppress(ProcessLookupError), Fd(os.pidfd_open(orphan)) as pidfd:
        await trio.lowlevel.wait_readable(pidfd.fileno())
    assert await system.launcher.orphan(orphan) == 7
    assert await system.launcher.orphan(orphan) is None
    assert await system.launcher.orphan(os.getpid()) is None
