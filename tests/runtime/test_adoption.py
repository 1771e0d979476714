"""A helper is killed, and the next one goes on: output, terminal, processes and exit codes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
import trio

from container.contracts.runtime import (
    ProcessSpec,
    SandboxPhase,
    Stdio,
    StopOptions,
    TerminalSize,
)
from container.ipc import Fd, InvalidState, NotFound, Unavailable
from container.runtime.records import Records, Step
from container.storage.paths import Paths

from .conftest import PATH, pipe, read_all, real_runtime_missing, runtimes
from .networks import network_helper
from .surviving import Survivor, System, alive, connected, launcher_running, next_launcher, until

pytestmark = pytest.mark.skipif(
    bool(real_runtime_missing("runc")), reason=real_runtime_missing("runc")
)


@pytest.fixture(scope="module")
def paths() -> Iterator[Paths]:
    with launcher_running() as found:
        yield found


@pytest.fixture
async def system(paths: Paths, layer: Path) -> AsyncGenerator[System]:
    async with connected(paths, layer) as found:
        yield found


async def running(survivor: Survivor, *command: str, **options: object) -> int:
    """Run a command in a container, and kill the helper; return the first process's pid."""
    async with survivor.sandbox() as sandbox:
        await sandbox.bootstrap(survivor.spec(*command, **options), Stdio())
        started = await sandbox.start("init")
        for fd in (started.terminal, started.terminal_input):
            if fd is not None:
                fd.close()
        return started.pid


async def end(survivor: Survivor) -> None:
    async with survivor.sandbox() as sandbox:
        await sandbox.shutdown()
    await survivor.gone()


async def test_output_is_neither_lost_nor_doubled_however_often_a_helper_is_killed(
    system: System,
) -> None:
    survivor = await system.container()
    script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; echo e$i >&2; done; exit 6"
    await running(survivor, "sh", "-c", script)
    for _ in range(4):
        await survivor.kill()
        async with survivor.sandbox() as sandbox:
            await sandbox.state()
    async with survivor.sandbox() as sandbox:
        assert (await sandbox.wait("init")).code == 6
    written = survivor.log().decode().split()
    assert [word for word in written if word[0] != "e"] == [str(n) for n in range(1, 3001)]
    assert [word for word in written if word[0] == "e"] == [f"e{n}" for n in range(1, 3001)]
    assert survivor.ended()
    await end(survivor)


async def test_the_last_words_and_the_exit_code_of_what_ends_without_a_helper_are_kept(
    system: System,
) -> None:
    survivor = await system.container()
    pid = await running(survivor, "sh", "-c", "sleep 0.2; echo last words; exit 33")
    await survivor.kill()
    await until(lambda: not alive(pid))
    async with survivor.sandbox() as sandbox:
        assert (await sandbox.wait("init")).code == 33
        assert (await sandbox.state()).phase is SandboxPhase.STOPPED
        assert survivor.log() == b"last words\n"
        assert survivor.ended()
    await end(survivor)


async def test_a_signal_that_ended_it_meanwhile_is_known(system: System) -> None:
    survivor = await system.container()
    pid = await running(survivor, "sleep", "100")
    await survivor.kill()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not alive(pid))
    async with survivor.sandbox() as sandbox:
        found = await sandbox.wait("init")
        assert (found.code, found.signal) == (137, 9)
    await end(survivor)


async def test_how_it_ended_is_known_even_when_it_has_ended_before_its_helper(
    system: System,
) -> None:
    survivor = await system.container()
    await running(survivor, "sh", "-c", "exit 5")
    async with survivor.sandbox() as sandbox:
        first = await sandbox.wait("init")
    await survivor.kill()
    async with survivor.sandbox() as sandbox:
        assert await sandbox.wait("init") == first
        assert (await sandbox.stop(StopOptions())).code == 5
        # And it may run again under the same helper.
        await sandbox.bootstrap(survivor.spec("sh", "-c", "exit 8"), Stdio())
        await sandbox.start("init")
        assert (await sandbox.wait("init")).code == 8
    await end(survivor)


async def test_a_terminal_goes_on(system: System) -> None:
    survivor = await system.container()
    async with survivor.sandbox() as sandbox:
        spec = survivor.spec(
            *("sh", "-c", "while read line; do stty size; echo got $line; done"),
            process={"terminal": True, "terminal_size": TerminalSize(71, 31)},
        )
        await sandbox.bootstrap(spec, Stdio())
        started = await sandbox.start("init")
        assert started.terminal_input is not None
        typed = os.dup(started.terminal_input.fileno())
        started.terminal_input.close()
    os.write(typed, b"one\n")
    await until(lambda: b"got one" in survivor.log())
    await survivor.kill()
    os.write(typed, b"two\n")  # nobody reads it now, and it is not lost
    async with survivor.sandbox() as sandbox:
        await sandbox.resize("init", TerminalSize(72, 32))
        await until(lambda: b"got two" in survivor.log())
        again = await sandbox.start("init")
        assert again.terminal_input is not None
        with again.terminal_input as further:
            os.write(further.fileno(), b"three\n")
        await until(lambda: b"got three" in survivor.log())
        await sandbox.kill("init", "KILL")
        assert (await sandbox.wait("init")).code == 137
    os.close(typed)
    log = survivor.log()
    assert b"31 71" in log
    assert log.endswith(b"32 72\r\ngot three\r\n")
    for word in (b"one", b"two", b"three"):
        assert log.count(b"got " + word) == 1
    await end(survivor)


async def test_a_terminal_without_a_log_is_resized_after_an_adoption(system: System) -> None:
    survivor = await system.container()
    async with survivor.sandbox() as sandbox:
        spec = survivor.spec(
            *("sh", "-c", "read line; stty size; exit 4"),
            process={"terminal": True},
            keep_log=False,
        )
        await sandbox.bootstrap(spec, Stdio())
    await survivor.kill()
    async with survivor.sandbox() as sandbox:
        assert (await sandbox.state()).phase is SandboxPhase.CREATED
        started = await sandbox.start("init")
        assert started.terminal is not None
        terminal = started.terminal.take()
    await survivor.kill()
    async with survivor.sandbox() as sandbox:
        await sandbox.resize("init", TerminalSize(73, 33))
        os.write(terminal, b"\n")
        assert (await sandbox.wait("init")).code == 4
    assert b"33 73" in os.read(terminal, 4096)
    os.close(terminal)
    await end(survivor)


async def test_further_processes_are_adopted_with_their_exit_codes(system: System) -> None:
    survivor = await system.container()
    await running(survivor, "sleep", "100")
    out, stdout = pipe()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    async with survivor.sandbox() as sandbox:
        for name, script in (
            ("short", "exit 3"),
            ("lost", "sleep 0.2; exit 22"),
            ("long", "read line; echo $line; exit 21"),
            ("unstarted", "true"),
        ):
            stdio = Stdio(stdin=Fd.give(read_end), stdout=stdout) if name == "long" else Stdio()
            await sandbox.create_process(name, ProcessSpec(("sh", "-c", script), (PATH,)), stdio)
            if name != "unstarted":
                await sandbox.start(name)
        stdout.close()
        assert (await sandbox.wait("short")).code == 3
        lost = next(p.pid or 0 for p in (await sandbox.state()).processes if p.id == "lost")
    await survivor.kill()
    await until(lambda: not alive(lost))
    async with survivor.sandbox() as sandbox:
        assert (await sandbox.wait("short")).code == 3
        assert (await sandbox.wait("lost")).code == 22
        with pytest.raises(NotFound):
            await sandbox.start("unstarted")
        os.write(write_end, b"hello\n")
        os.close(write_end)
        assert (await sandbox.wait("long")).code == 21
        assert read_all(out) == b"hello\n"
    await end(survivor)


async def test_statistics_pauses_and_memory_are_known_after_an_adoption(system: System) -> None:
    survivor = await system.container()
    await running(survivor, "sleep", "100")
    async with survivor.sandbox() as sandbox:
        await sandbox.pause()
    await survivor.kill()
    async with survivor.sandbox() as sandbox:
        assert (await sandbox.state()).phase is SandboxPhase.PAUSED
        assert (await sandbox.statistics()).pids == 1
        await sandbox.resume()
        assert (await sandbox.state()).phase is SandboxPhase.RUNNING
        with pytest.raises(InvalidState, match="already"):
            await sandbox.bootstrap(survivor.spec("true"), Stdio())
        await sandbox.pause()
    await survivor.kill()
    async with survivor.sandbox() as sandbox:
        assert (await sandbox.stop(StopOptions(timeout=0.05))).code == 137
    await end(survivor)


async def test_input_that_is_held_open_stays_open(system: System) -> None:
    survivor = await system.container()
    await running(survivor, "cat", process={"keep_input": True})
    await survivor.kill()
    async with survivor.sandbox() as sandbox:
        with trio.move_on_after(0.1):
            await sandbox.wait("init")
        assert (await sandbox.state()).phase is SandboxPhase.RUNNING
    await end(survivor)


async def test_a_launcher_and_a_helper_killed_at_once_leave_the_container_and_its_exit_code(
    system: System,
) -> None:
    survivor = await system.container()
    await running(survivor, "sh", "-c", 'trap "exit 9" TERM; while :; do sleep 0.05; done')
    os.kill(await survivor.helper(), signal.SIGKILL)
    async with next_launcher(system):
        await survivor.register()
        async with survivor.sandbox() as sandbox:
            assert (await sandbox.state()).phase is SandboxPhase.RUNNING
            assert (await sandbox.stop(StopOptions())).code == 9
        await end(survivor)


async def test_a_launcher_that_comes_later_keeps_the_descriptors_too(system: System) -> None:
    survivor = await system.container()
    pid = await running(survivor, "sh", "-c", "sleep 0.5; echo last words; exit 34")
    async with next_launcher(system):
        await survivor.register()
        await survivor.registered()
        await trio.sleep(0.05)  # what it has kept follows at once, and nothing tells of it
        await survivor.kill()
        await until(lambda: not alive(pid))
        async with survivor.sandbox() as sandbox:
            assert (await sandbox.wait("init")).code == 34
        assert survivor.log() == b"last words\n"
        await end(survivor)


async def test_the_end_of_what_ends_at_once_is_what_is_written_last(system: System) -> None:
    for _ in range(5):
        survivor = await system.container()
        await running(survivor, "true")
        async with survivor.sandbox() as sandbox:
            assert (await sandbox.wait("init")).code == 0
            found = Records(survivor.folder / "bundle" / "records").read()
            assert found is not None
            assert found.first is not None
            assert found.first.step is Step.ENDED
        await end(survivor)


@pytest.mark.parametrize("runtime", runtimes("crun"))
async def test_another_oci_runtimes_container_is_adopted_too(system: System, runtime: str) -> None:
    system.runtime = runtime
    survivor = await system.container()
    async with survivor.sandbox() as sandbox:
        await sandbox.bootstrap(survivor.spec("sh", "-c", "read line; exit 12"), Stdio())
    await survivor.kill()
    async with survivor.sandbox() as sandbox:
        assert (await sandbox.state()).phase is SandboxPhase.CREATED
        await sandbox.start("init")
        assert (await sandbox.wait("init")).code == 12
    await end(survivor)
    survivor = await system.container()
    await running(survivor, "sh", "-c", 'trap "exit 13" TERM; while :; do sleep 0.02; done')
    await survivor.kill()
    async with survivor.sandbox() as sandbox:
        await sandbox.pause()
    await survivor.kill()
    async with survivor.sandbox() as sandbox:
        assert (await sandbox.state()).phase is SandboxPhase.PAUSED
        assert (await sandbox.stop(StopOptions())).code == 13
    await end(survivor)


async def test_a_container_that_is_dialled_after_an_adoption_answers(system: System) -> None:
    survivor = await system.container()
    await running(survivor, "sh", "-c", "nc -l -p 7000 -e echo hello; sleep 100")
    await survivor.kill()
    async with survivor.sandbox() as sandbox:
        while True:
            try:
                connection = await sandbox.dial(7000)
                break
            except Unavailable:
                await trio.sleep(0.02)  # nothing tells when a program listens
        with socket.socket(fileno=connection.take()) as dialled:
            dialled.settimeout(5)
            assert await trio.to_thread.run_sync(dialled.recv, 100) == b"hello\n"
    await end(survivor)


async def test_a_container_stays_in_its_networks_whoever_is_killed(system: System) -> None:
    async with network_helper(system.paths.run, "web") as web:
        survivor = await system.container()
        survivor.networks = (web.wanted(survivor.id),)
        pid = await running(survivor, "sleep", "100")
        own = os.stat(f"/proc/{pid}/ns/net").st_ino
        attachment = web.network.attachments[survivor.id]

        async def taken_up(times: int) -> None:
            async with survivor.sandbox() as sandbox:  # which starts the helper if need be
                assert (await sandbox.state()).networks == (attachment,)
                await until(lambda: len(web.network.requests) == times)
            with web.network.namespaces[survivor.id].duplicate() as given:
                assert os.fstat(given.fileno()).st_ino == own
            assert web.network.attachments == {survivor.id: attachment}

        await taken_up(1)
        await survivor.kill()
        await taken_up(2)
        await web.kill()
        await web.start()
        await taken_up(3)
        await web.kill()
        await survivor.kill()
        async with survivor.sandbox() as sandbox:
            # It is known before the network's helper is back.
            assert (await sandbox.state()).networks == (attachment,)
            await web.start()
        await taken_up(4)
        async with next_launcher(system):
            await survivor.registered()
            await web.kill()
            await web.start()
            await taken_up(5)
            await end(survivor)
        assert web.attached == set()
