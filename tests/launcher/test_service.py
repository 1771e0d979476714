"""The launcher as a process: sockets, starts, restarts, stops, adoption, its own death."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio
from attrs import evolve

from container.contracts.launcher import Launcher, Restart, ServiceState
from container.ipc import AlreadyExists, InvalidArgument, NotFound, PeerGone
from container.launcher.boot import ensure_running, start_private, wait_stopped
from container.storage.paths import Paths

from .conftest import BOUND, System, ask, end, processes_of, running, unit, until


async def test_a_service_starts_on_its_first_connection(system: System) -> None:
    path = await system.launcher.register(unit("one"))
    assert path == str(system.paths.run / "one.sock")
    assert (await system.service("one")).state is ServiceState.LISTENING
    found = await ask(path)
    status = await system.service("one")
    assert (status.state, status.pid) == (ServiceState.RUNNING, found["pid"])
    assert (await ask(path))["pid"] == found["pid"]


async def test_a_listener_asks_for_credentials_before_anybody_can_connect(system: System) -> None:
    path = await system.launcher.register(unit("one"))
    assert (await trio.Path(path).stat()).st_mode & 0o777 == 0o600
    assert (await ask(path))["passcred"] == 1


async def test_a_killed_service_comes_back_and_its_socket_never_refused(system: System) -> None:
    path = await system.launcher.register(unit("one", restart_delay=0.2))
    first = (await ask(path))["pid"]
    os.kill(first, signal.SIGKILL)
    await system.until("one", ServiceState.BACKOFF)
    second = (await ask(path))["pid"]  # waits in the queue of the socket
    status = await system.service("one")
    assert second != first
    assert (status.restarts, status.last_exit) == (1, 137)


async def test_a_service_that_fails_too_often_is_left_and_callers_get_an_answer(
    system: System,
) -> None:
    path = await system.launcher.register(unit("bad", "failing", restart_limit=3))
    with pytest.raises((trio.BrokenResourceError, AssertionError)):
        assert await ask(path)  # closed without an answer
    status = await system.until("bad", ServiceState.FAILED)
    assert (status.last_exit, status.restarts) == (3, 2)
    await system.launcher.start("bad")
    await system.until("bad", ServiceState.FAILED)


async def test_a_service_that_ends_well_waits_for_the_next_connection(system: System) -> None:
    path = await system.launcher.register(unit("one"))
    first = (await ask(path))["pid"]
    assert await ask(path, "exit 0") == {}
    status = await system.until("one", ServiceState.LISTENING)
    assert (status.last_exit, status.pid, status.restarts) == (0, None, 0)
    assert (await ask(path))["pid"] != first


async def test_a_service_that_never_restarts_waits_after_a_failure(system: System) -> None:
    path = await system.launcher.register(unit("one", restart=Restart.NO))
    assert await ask(path, "exit 5") == {}
    assert (await system.until("one", ServiceState.LISTENING)).last_exit == 5


async def test_stop_keeps_the_socket_and_start_starts_at_once(system: System) -> None:
    path = await system.launcher.register(unit("one"))
    started = await system.launcher.start("one")
    assert started.pid == (await system.launcher.start("one")).pid
    stopped = await system.launcher.stop("one")
    assert (stopped.state, stopped.pid) == (ServiceState.LISTENING, None)
    assert (await ask(path))["pid"] != started.pid
    with pytest.raises(NotFound, match='no service "two"'):
        await system.launcher.start("two")


async def test_a_service_that_ignores_its_stop_is_killed_in_time(system: System) -> None:
    await system.launcher.register(unit("one", stop_timeout=0.2))
    pid = (await system.launcher.start("one")).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await system.launcher.stop("one")
    assert (await system.service("one")).last_exit in (143, 137)


async def test_a_service_without_a_socket_starts_when_it_is_registered(system: System) -> None:
    assert await system.launcher.register(unit("alone", listen=None)) == ""
    assert (await system.service("alone")).state is ServiceState.RUNNING


async def test_registering_again_is_idempotent_for_an_equal_unit_alone(system: System) -> None:
    path = await system.launcher.register(unit("one"))
    assert await system.launcher.register(unit("one")) == path
    with pytest.raises(AlreadyExists, match='"one"'):
        await system.launcher.register(unit("one", description="another"))
    with pytest.raises(AlreadyExists, match="belongs to service"):
        await system.launcher.register(unit("two", listen="one.sock"))


@pytest.mark.parametrize(
    ("name", "listen", "sentence"),
    [
        ("Bad Name", "x.sock", "can't be named"),
        ("one", "../x.sock", "not a path below"),
        ("one", "/x.sock", "not a path below"),
        ("one", "launcher.sock", "launcher's own"),
        ("one", "x" * 120, "107 bytes are allowed"),
    ],
)
async def test_a_bad_name_or_path_is_refused_by_its_rule(
    system: System, name: str, listen: str, sentence: str
) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        await system.launcher.register(unit(name, listen=listen))


async def test_remove_ends_the_process_and_unlinks_its_own_socket_only(system: System) -> None:
    path = trio.Path(await system.launcher.register(unit("one")))
    pid = (await system.launcher.start("one")).pid
    await system.launcher.remove("one")
    assert not await path.exists()
    assert pid not in processes_of(system.paths)
    await system.launcher.remove("one")

    await system.launcher.register(unit("one"))
    await path.unlink()
    await path.write_text("another's")
    await system.launcher.remove("one")
    assert await path.read_text() == "another's"


async def test_services_stop_before_those_that_they_start_after(
    paths: Paths, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    async with running(paths) as system:
        for name, after in (("b", ("a",)), ("a", ()), ("c", ("b",))):
            environment = {"NOTE": str(note), "NAME": name}
            await system.launcher.register(
                unit(name, "proper", after=after, environment=environment)
            )
            await ask(paths.run / f"{name}.sock")
        await system.launcher.shutdown()
    assert [line.split()[:2] for line in note.read_text().splitlines()] == [
        ["c", "signal"],
        ["b", "signal"],
        ["a", "signal"],
    ]


async def test_services_end_with_a_killed_launcher_but_those_that_outlive_it(
    paths: Paths, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    async with running(paths) as system:
        mortal = unit("mortal", "proper", environment={"NOTE": str(note), "NAME": "mortal"})
        lasting = unit("lasting", "proper", outlives_launcher=True)
        for one in (mortal, lasting):
            await system.launcher.register(one)
        mortal_pid = (await ask(paths.run / "mortal.sock"))["pid"]
        lasting_pid = (await ask(paths.run / "lasting.sock"))["pid"]
        os.kill((await system.launcher.status()).pid, signal.SIGKILL)
        await until(lambda: set(processes_of(paths).values()) == {"lasting"})
    assert note.read_text() == "mortal lifeline False\n"
    assert mortal_pid not in processes_of(paths)

    # The next launcher takes stale sockets away, and leaves the living one's alone.
    async with running(paths) as system:
        path = await system.launcher.register(lasting)
        assert (await ask(path))["pid"] == lasting_pid
        assert (await ask(path, "adopt lasting lasting.sock"))["pid"] == lasting_pid
        status = await system.service("lasting")
        assert (status.state, status.pid) == (ServiceState.RUNNING, lasting_pid)
        os.kill(lasting_pid, signal.SIGKILL)
        await system.until("lasting", ServiceState.BACKOFF)
        again = await ask(path)  # on the socket that was handed over
        assert again["pid"] != lasting_pid
        assert (await system.service("lasting")).last_exit == 137


async def test_a_service_that_outlives_the_launcher_survives_an_ordered_stop(
    paths: Paths,
) -> None:
    async with running(paths) as system:
        await system.launcher.register(unit("lasting", "proper", outlives_launcher=True))
        pid = (await ask(paths.run / "lasting.sock"))["pid"]
        await system.launcher.shutdown()
        await wait_stopped(paths)
        assert processes_of(paths) == {pid: "lasting"}
        assert (await ask(paths.run / "lasting.sock"))["pid"] == pid
        os.kill(pid, signal.SIGTERM)


async def test_a_name_whose_old_server_never_registers_is_taken_anew(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(paths) as system:
        lasting = unit("lasting", outlives_launcher=True)
        await system.launcher.register(lasting)
        old = (await ask(paths.run / "lasting.sock"))["pid"]
        await system.launcher.shutdown()
        await wait_stopped(paths)
    async with running(paths) as system:
        path = await system.launcher.register(lasting)
        with trio.fail_after(BOUND):
            while (await ask(path))["pid"] == old:  # noqa: ASYNC110
                await trio.sleep(0.2)  # until the launcher's patience is over
        os.kill(old, signal.SIGKILL)


async def test_a_private_system_ends_with_its_owner_lasting_services_included(
    paths: Paths, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    owner = await start_private(paths)
    with owner:
        environment = {"NOTE": str(note), "NAME": "lasting"}
        async with Launcher.connect(paths.launcher_socket) as launcher:
            await launcher.register(
                unit("lasting", "proper", outlives_launcher=True, environment=environment)
            )
            await ask(paths.run / "lasting.sock")
    await wait_stopped(paths)
    await until(lambda: not processes_of(paths))
    name, reason, owned = note.read_text().split()
    assert (name, owned) == ("lasting", "True")
    assert reason in ("signal", "lifeline")
    assert not list(paths.run.rglob("*.sock"))


async def test_a_lasting_service_of_a_private_system_ends_with_the_owner_without_a_launcher(
    paths: Paths,
) -> None:
    owner = await start_private(paths)
    with owner:
        async with Launcher.connect(paths.launcher_socket) as launcher:
            await launcher.register(unit("lasting", "proper", outlives_launcher=True))
            pid = (await ask(paths.run / "lasting.sock"))["pid"]
            os.kill((await launcher.status()).pid, signal.SIGKILL)
        assert (await ask(paths.run / "lasting.sock"))["pid"] == pid
    await until(lambda: not processes_of(paths))


async def test_a_killed_zygote_is_replaced_and_its_services_live_on(system: System) -> None:
    path = await system.launcher.register(unit("one"))
    pid = (await ask(path))["pid"]
    (zygote,) = [pid for pid, name in processes_of(system.paths).items() if name == "zygote"]
    os.kill(zygote, signal.SIGKILL)
    assert (await ask(path))["pid"] == pid
    other = await system.launcher.register(unit("two"))
    assert (await ask(other))["parent"] == (await system.launcher.status()).pid


async def test_orphans_of_services_are_reaped(system: System, tmp_path: Path) -> None:
    program = tmp_path / "fork.py"
    program.write_text("import os, time\nif os.fork() == 0:\n    time.sleep(0.3)\n")
    forking = evolve(
        unit("one", listen=None, restart=Restart.NO),
        entry=None,
        command=(sys.executable, str(program)),
    )
    await system.launcher.register(forking)
    status = await system.until("one", ServiceState.LISTENING)
    assert status.last_exit == 0
    launcher = (await system.launcher.status()).pid
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    await until(lambda: len(children.read_text().split()) == 1)  # the zygote, no orphan


async def test_without_a_zygote_services_are_fresh_interpreters(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINER_NO_ZYGOTE", "1")
    async with running(paths) as system:
        found = await ask(await system.launcher.register(unit("one")))
        assert not found["preloaded"]
        assert found["environment"]["LISTEN_PID"] == str(found["pid"])
        assert found["argv"][-1] == "bare"


async def test_a_hundred_starts_at_once_start_one_launcher(paths: Paths) -> None:
    program = (
        "import os, trio\n"
        "from container.launcher.boot import ensure_running\n"
        "from container.storage.paths import Paths\n"
        "children = []\n"
        "for _ in range(100):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(trio.run(ensure_running, Paths.default()))\n"
        "    children.append(child)\n"
        "print(sum(os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children))\n"
    )
    try:
        done = await trio.run_process(
            [sys.executable, "-c", program],
            env={**os.environ, **paths.environment()},
            capture_stdout=True,
        )
        assert done.stdout == b"1\n"
        names = list(processes_of(paths).values())
        assert names.count("zygote") == 1
        assert not await ensure_running(paths)
    finally:
        await end(paths)


async def test_a_second_launcher_says_that_there_is_one(system: System) -> None:
    done = await trio.run_process(
        [sys.executable, "-m", "container.launcher.process", "--log", "-"],
        env={**os.environ, **system.paths.environment()},
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"a launcher works in {system.paths.run} already" in done.stderr.decode()
    assert (await system.launcher.status()).services


async def test_after_a_shutdown_nothing_is_left_in_the_run_directory(paths: Paths) -> None:
    async with running(paths) as system:
        await ask(await system.launcher.register(unit("one")))
        await system.launcher.shutdown()
    await wait_stopped(paths)
    assert list(paths.run.iterdir()) == []
    with pytest.raises(PeerGone):
        async with Launcher.connect(paths.launcher_socket):
            pass
