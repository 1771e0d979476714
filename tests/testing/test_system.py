"""The whole system in one process: real services, played containers."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio

from container.contracts.apiserver import ContainerOptions, ContainerStatus, PullPolicy
from container.contracts.runtime import StopOptions
from container.embed import ContainerFailed
from container.ipc import NotFound
from container.testing import system
from container.testing.oci import Play


async def test_a_program_of_the_test_runs_in_a_container_and_its_status_is_told(
    autojump_clock: Any,
) -> None:
    async def job(play: Play) -> int:
        await play.write(b"working\n")
        await trio.sleep(3600)
        return 3

    async with system(programs={"job": job}) as it:
        await it.add_image(programs=["job"])
        async with it.run("demo", ["job"]) as c:
            assert await c.stdout.receive_some() == b"working\n"
            assert (await c.wait()).code == 3
        assert await it.containers.list() == ()
        assert [call.verb for call in it.runtime.calls][:2] == ["create", "start"]


async def test_the_fixture_of_the_plugin_is_a_system(
    container_system: Any, autojump_clock: Any
) -> None:
    await container_system.add_image("job")
    async with container_system.run("job", ["false"]) as c:
        assert (await c.wait()).code == 1
    assert (await container_system.health.ping()).pid == os.getpid()
    assert "container-runtime" in {it.name for it in await container_system.plugins.list()}


async def test_stdin_stdout_and_exec_are_pipes(autojump_clock: Any) -> None:
    async with system() as it:
        await it.add_image()
        async with it.run("demo", ["cat"], stdin=True) as c:
            assert c.stdin is not None
            await c.stdin.send_all(b"hello")
            assert await c.stdout.receive_some() == b"hello"
            result = await c.exec(["echo", "a", "b"])
            assert (result.code, result.stdout, result.stderr) == (0, b"a b\n", b"")
            result = await c.exec(["cat"], input=b"x" * 300_000)
            assert result.stdout == b"x" * 300_000
            with pytest.raises(ContainerFailed, match="`false` ended with status 1"):
                await c.exec(["false"], check=True)
            with pytest.raises(NotFound):
                await c.exec(["nothing-of-that-name"])
            await c.stdin.aclose()
            assert (await c.wait()).code == 0


async def test_check_raises_for_another_status_than_0(autojump_clock: Any) -> None:
    async with system() as it:
        await it.add_image()
        with pytest.raises(ContainerFailed, match="ended with status 3") as caught:
            async with it.run("demo", ["sh", "-c", "exit 3"], check=True) as c:
                await c.wait()
        assert caught.value.status.code == 3
        assert await it.containers.list() == ()


async def test_leaving_the_block_kills_whatever_way_it_is_left(autojump_clock: Any) -> None:
    async with system() as it:
        await it.add_image()
        start = trio.current_time()
        async with it.run("demo", ["sleep", "1000"]):
            pass
        with pytest.raises(ValueError, match="mine"):
            async with it.run("demo", ["sleep", "1000"]):
                raise ValueError("mine")
        with trio.move_on_after(1) as scope:
            async with it.run("demo", ["sleep", "1000"]) as c:
                await c.wait()
        assert scope.cancelled_caught
        assert trio.current_time() - start < 30
        assert await it.containers.list() == ()
        assert it.helpers.names() == ()


async def test_kill_ends_a_container(autojump_clock: Any) -> None:
    async with system() as it:
        await it.add_image()
        async with it.run("demo", ["sleep", "1000"]) as c:
            await c.kill()
            status = await c.wait()
            assert (status.code, status.signal) == (137, 9)


async def test_an_unknown_image_or_command_leaves_nothing(autojump_clock: Any) -> None:
    async with system() as it:
        await it.add_image()
        with pytest.raises(NotFound, match="dem"):
            async with it.run("dem", pull=PullPolicy.NEVER):
                raise AssertionError("it ran")
        with pytest.raises(NotFound) as caught:
            async with it.run("demo", ["nothing-of-that-name"]):
                raise AssertionError("it ran")
        assert caught.value.details["exit_status"] == 127
        assert await it.containers.list() == ()
        assert it.helpers.names() == ()


async def test_a_detached_container_is_listed_logged_and_stopped(autojump_clock: Any) -> None:
    async with system() as it:
        await it.add_image()
        made = await it.containers.create(
            ContainerOptions("demo", name="web", command=("echo", "logged"))
        )
        await it.containers.start("web")
        assert (await it.containers.wait("web")).code == 0
        files = await it.containers.logs("web")
        with files.data, files.index:
            assert os.pread(files.data.fileno(), 100, 0) == b"logged\n"
        await trio.sleep(10)
        files = await it.containers.logs("web")
        with files.data, files.index:
            assert os.pread(files.data.fileno(), 100, 0) == b"logged\n"
        again = await it.containers.create(ContainerOptions("demo", command=("sleep", "1000")))
        await it.containers.start(again.id)
        stopped = await it.containers.stop(again.id, StopOptions(timeout=1))
        assert stopped.status is ContainerStatus.STOPPED
        statuses = {item.id: item.status for item in await it.containers.list()}
        assert set(statuses) == {made.id, again.id}
        for item in (made, again):
            await it.containers.delete(item.id)
        assert await it.containers.list() == ()


async def test_a_second_system_finds_what_the_first_one_kept(
    autojump_clock: Any, tmp_path: Any
) -> None:
    async with system(root=tmp_path) as first:
        await first.add_image()
        made = await first.containers.create(ContainerOptions("demo", name="web"))
    async with system(root=tmp_path) as second:
        assert [item.id for item in await second.containers.list()] == [made.id]
        await second.containers.delete("web")


async def test_a_whole_life_takes_milliseconds_of_real_time(autojump_clock: Any) -> None:
    import time

    async with system() as it:
        await it.add_image()
        start = time.monotonic()
        for _ in range(5):
            async with it.run("demo", ["true"]) as c:
                assert (await c.wait()).code == 0
        assert (time.monotonic() - start) / 5 < 0.5
