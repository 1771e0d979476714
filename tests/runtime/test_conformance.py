"""One suite for every OCI runtime: the played one and the real ones behave the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from container.contracts.logs import LogStream, copy_log, decode_records
from container.contracts.runtime import (
    ProcessSpec,
    ProcessState,
    SandboxPhase,
    Stdio,
    StopOptions,
    TerminalSize,
)
from container.ipc import AlreadyExists, Fd, InvalidArgument, InvalidState, NotFound

from .conftest import BOTH, PATH, SIZE, TRAP, pipe, read_all, runtimes, sandbox

pytestmark = pytest.mark.parametrize("runtime", runtimes("recorded", "runc", "crun"))


@pytest.mark.parametrize(
    ("command", "code"), [(("true",), 0), (("false",), 1), (("sh", "-c", "exit 200"), 200)]
)
async def test_the_exit_code_is_the_processs_own(
    runtime: str, tmp_path: Path, layer: Path, command: tuple[str, ...], code: int
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        assert await bench.run(*command) == code
        state = await bench.service.state()
        assert state.phase is SandboxPhase.STOPPED
        assert state.processes[0].state is ProcessState.EXITED


async def test_given_descriptors_reach_the_process_and_are_not_kept(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    out, stdout = pipe()
    stdin_read, stdin_write = os.pipe2(os.O_CLOEXEC)
    async with sandbox(runtime, tmp_path, layer) as bench:
        with stdout, Fd(stdin_read) as stdin:
            await bench.service.bootstrap(
                bench.spec("cat", keep_log=False), Stdio(stdin=stdin, stdout=stdout)
            )
        await bench.service.start("init")
        os.write(stdin_write, b"\x00bytes\xff")
        os.close(stdin_write)
        assert (await bench.service.wait("init")).code == 0
        assert await trio.to_thread.run_sync(read_all, out) == b"\x00bytes\xff"
        with pytest.raises(InvalidState, match="keeps no log"):
            await bench.service.logs()


async def test_output_nobody_takes_goes_to_the_log_with_its_stream(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.run(*BOTH)
        files = await bench.service.logs()
        with files.data, files.index:
            records = decode_records(os.pread(files.index.fileno(), 4096, 0))
    assert bench.log() in (b"out\nerr\n", b"err\nout\n")
    streams = [record.stream for record in records]
    assert streams[0] is LogStream.START
    assert streams[-1] is LogStream.END
    assert set(streams[1:-1]) == {LogStream.STDOUT, LogStream.STDERR}


async def test_a_follower_sees_the_run_to_its_end(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("echo", "hello"), Stdio())
        files = await bench.service.logs()
        out, stdout = pipe()
        with files.data, files.index:
            async with trio.open_nursery() as nursery:

                async def follow() -> None:
                    with stdout:
                        await copy_log(
                            files.data.fileno(),
                            files.index.fileno(),
                            stdout.fileno(),
                            stdout.fileno(),
                            following=True,
                        )

                nursery.start_soon(follow)
                await bench.service.start("init")
        assert read_all(out) == b"hello\n"


async def test_stop_lets_the_process_end_by_itself(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec(*TRAP), Stdio())
        await bench.service.start("init")
        with trio.fail_after(10):
            await bench.said(b"ready")
            exit_status = await bench.service.stop(StopOptions())
        assert exit_status.code == 7
        assert await bench.service.stop(StopOptions()) == exit_status


async def test_stop_kills_what_does_not_end_in_time(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        await bench.service.start("init")
        exit_status = await bench.service.stop(StopOptions(timeout=0.05))
        assert (exit_status.code, exit_status.signal) == (137, 9)
        assert not exit_status.out_of_memory


async def test_a_container_that_was_never_started_can_be_stopped(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        assert (await bench.service.state()).phase is SandboxPhase.CREATED
        with trio.fail_after(5):
            await bench.service.stop(StopOptions())
        with pytest.raises(InvalidState):
            await bench.service.start("init")


async def test_start_is_idempotent_and_bootstrap_is_not(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        with pytest.raises(InvalidState, match="already"):
            await bench.service.bootstrap(bench.spec("true"), Stdio())
        first = await bench.service.start("init")
        assert await bench.service.start("init") == first


async def test_signals_go_by_name_and_number(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        await bench.service.start("init")
        await bench.service.kill("init", "SIGUSR1")  # ignored by a first process
        with pytest.raises(InvalidArgument, match="is no signal"):
            await bench.service.kill("init", "SIGNONSENSE")
        with pytest.raises(NotFound):
            await bench.service.kill("other", "KILL")
        await bench.service.kill("init", "9")
        assert (await bench.service.wait("init")).code == 137
        with pytest.raises(InvalidState):
            await bench.service.kill("init", "KILL")


async def test_a_further_process_has_its_own_descriptors_and_status(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        await bench.service.start("init")
        out, stdout = pipe()
        spec = ProcessSpec(arguments=("echo", "inside"), environment=(PATH,))
        await bench.service.create_process("one", spec, Stdio(stdout=stdout))
        with pytest.raises(AlreadyExists):
            await bench.service.create_process("one", spec, Stdio())
        await bench.service.start("one")
        assert (await bench.service.wait("one")).code == 0
        assert await trio.to_thread.run_sync(read_all, out) == b"inside\n"
        spec = ProcessSpec(arguments=("sleep", "100"), environment=(PATH,))
        await bench.service.create_process("two", spec, Stdio())
        await bench.service.start("two")
        await bench.service.kill("two", "TERM")
        assert (await bench.service.wait("two")).code == 143
        await bench.service.create_process("three", spec, Stdio())
        await bench.service.start("three")
        await bench.service.stop(StopOptions(timeout=0))
        assert (await bench.service.wait("three")).code == 137


async def test_a_further_process_that_nobody_starts_lets_go_of_its_descriptors(
    runtime: str, tmp_path: Path, layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.runtime.service.CLAIM_SECONDS", 0.1)
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        await bench.service.start("init")
        out, stdout = pipe()
        spec = ProcessSpec(arguments=("sleep", "100"), environment=(PATH,))
        await bench.service.create_process("one", spec, Stdio(stdout=stdout))
        with trio.fail_after(20):
            assert await trio.to_thread.run_sync(read_all, out) == b""
        with pytest.raises(NotFound):
            await bench.service.start("one")
        await bench.service.create_process("one", spec, Stdio())
        await bench.service.start("one")
        await trio.sleep(0.3)  # it was claimed: nothing gives it up
        await bench.service.kill("one", "TERM")
        assert (await bench.service.wait("one")).code == 143


async def test_a_command_that_is_not_there_is_127_and_leaves_nothing(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        for command in ("nonsense", "/bin/nonsense"):
            with pytest.raises(NotFound) as caught:
                await bench.service.bootstrap(bench.spec(command), Stdio())
            assert caught.value.details["exit_status"] == 127
            assert command in caught.value.message
        assert (await bench.service.state()).phase is SandboxPhase.EMPTY
        # And the sandbox is as good as new.
        assert await bench.run("true") == 0


async def test_a_further_command_that_is_not_there_is_127(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        await bench.service.start("init")
        spec = ProcessSpec(arguments=("nonsense",), environment=(PATH,))
        await bench.service.create_process("one", spec, Stdio())
        with pytest.raises(NotFound) as caught:
            await bench.service.start("one")
        assert caught.value.details["exit_status"] == 127
        with pytest.raises(NotFound):
            await bench.service.wait("one")


@pytest.mark.parametrize("command", ["/bin/plain", "unexecutable", "/bin"])
async def test_a_command_that_cannot_be_executed_is_126(
    runtime: str, tmp_path: Path, layer: Path, command: str
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        with pytest.raises(InvalidArgument) as caught:
            await bench.service.bootstrap(bench.spec(command), Stdio())
        assert caught.value.details["exit_status"] == 126


async def test_a_terminal_without_a_log_is_handed_out(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        process = {"terminal": True, "terminal_size": TerminalSize(width=71, height=31)}
        await bench.service.bootstrap(bench.spec(*SIZE, process=process, keep_log=False), Stdio())
        started = await bench.service.start("init")
        assert started.terminal_input is None
        assert started.terminal is not None
        with started.terminal as terminal:
            assert b"31 71" in await read_until(terminal.fileno(), b"71")
            os.write(terminal.fileno(), b"typed\n")
            assert b"got typed" in await read_until(terminal.fileno(), b"got typed")
            assert (await bench.service.wait("init")).code == 0


async def test_a_terminal_with_a_log_takes_input_by_a_pipe(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        process = {"terminal": True, "terminal_size": TerminalSize(width=72, height=32)}
        await bench.service.bootstrap(bench.spec(*SIZE, process=process), Stdio())
        started = await bench.service.start("init")
        assert started.terminal is None
        assert started.terminal_input is not None
        with started.terminal_input as terminal:
            os.write(terminal.fileno(), b"typed\n")
            assert (await bench.service.wait("init")).code == 0
        assert b"32 72" in bench.log()
        assert b"got typed" in bench.log()
        index = (bench.folder / "log" / "index").read_bytes()
        assert LogStream.TERMINAL in {record.stream for record in decode_records(index)}


async def test_only_terminals_are_resized(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        await bench.service.start("init")
        with pytest.raises(InvalidState, match="has no terminal"):
            await bench.service.resize("init", TerminalSize(80, 25))


async def test_leaving_the_service_ends_its_container(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        await bench.service.start("init")


async def test_shutdown_ends_everything_and_says_so(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        await bench.service.start("init")
        await bench.service.shutdown()
        assert bench.service.ended.is_set()
        assert (await bench.service.wait("init")).code == 137
        await bench.service.shutdown()


async def test_a_cancelled_bootstrap_leaves_nothing(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        for seconds in (0.0, 0.001, 0.005, 0.02, 0.05):
            with trio.move_on_after(seconds) as scope:
                await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
            if not scope.cancelled_caught:
                break
            assert (await bench.service.state()).phase is SandboxPhase.EMPTY
            assert not (bench.folder / "bundle" / "run").exists()


async def test_keep_input_holds_stdin_open(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        spec = bench.spec("cat", process={"keep_input": True})
        await bench.service.bootstrap(spec, Stdio())
        await bench.service.start("init")
        with trio.move_on_after(0.1):
            await bench.service.wait("init")
        assert (await bench.service.state()).phase is SandboxPhase.RUNNING


async def test_without_input_stdin_is_empty(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        assert await bench.run("cat") == 0


async def read_until(fd: int, wanted: bytes) -> bytes:
    """Read from a terminal until it has said something."""
    said = b""
    with trio.fail_after(5):
        while wanted not in said:
            await trio.lowlevel.wait_readable(fd)
            said += os.read(fd, 4096)
    return said
