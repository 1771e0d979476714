"""What a real container sees: isolation, limits, mounts, users. Root and an OCI runtime needed."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest
import trio

from container.contracts.runtime import (
    Mount,
    MountKind,
    ProcessSpec,
    Resources,
    SandboxPhase,
    Stdio,
    StopOptions,
)
from container.ipc import InvalidArgument, InvalidState, NotFound, Unavailable, Unsupported
from container.runtime.service import SandboxService
from container.testing.oci import RecordedRuntime, recorded_machinery

from .conftest import PATH, Bench, pipe, read_all, runtimes, sandbox

pytestmark = pytest.mark.parametrize("runtime", runtimes("runc", "crun"))


async def said(bench: Bench, script: str, **rest: object) -> str:
    """Run a shell script to its end; return what it wrote."""
    await bench.run("sh", "-c", script, **rest)  # type: ignore[arg-type]
    return bench.log().decode()


async def test_a_process_is_confined(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        text = await said(bench, "cat /proc/self/status; echo pid $$; hostname")
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["CapEff"] == status["CapBnd"] == "00000000800405fb"
    assert status["CapAmb"] == status["CapInh"] == "0000000000000000"
    assert "pid 1" in text
    assert "tested" in text


async def test_system_files_are_hidden_or_read_only(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        text = await said(
            bench,
            "echo keys $(wc -c < /proc/timer_list); "
            "echo firmware $(ls /sys/firmware | wc -l); echo x > /proc/sys/kernel/hostname; "
            "touch /sys/x; cat /etc/hostname; mount; ls /dev",
        )
    assert "keys 0\n" in text or "can't open /proc/timer_list" in text
    assert "firmware 0\n" in text
    assert text.count("Read-only file system") == 2
    assert "tested\n" in text
    assert "overlay on / type overlay (rw" in text
    assert set(text.split()) >= {"null", "zero", "urandom", "tty", "ptmx", "shm", "mqueue", "pts"}
    assert "vda" not in text.rsplit("type", 1)[-1]


async def test_network_none_has_only_a_loopback_that_is_up(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        text = await said(bench, "ls /sys/class/net; cat /proc/net/dev; cat /etc/resolv.conf")
    assert text.split()[0] == "lo"
    assert text.count(":") == 1


async def test_network_host_is_the_hosts(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        text = await said(bench, "readlink /proc/self/ns/net; cat /etc/hosts", network="host")
    assert text.splitlines()[0] == os.readlink("/proc/self/ns/net")
    assert "127.0.0.1\ttested" in text


async def test_a_user_is_the_containers_own(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        text = await said(
            bench,
            "exec 2>&1; id -u; id -g; id -G; pwd; echo $HOME; echo to-stderr > /dev/stderr",
            process={"user": "ada", "working_directory": "/home/ada/new"},
        )
    assert text.splitlines() == [
        *("1000", "1000", "1000 2000", "/home/ada/new", "/home/ada", "to-stderr")
    ]


async def test_an_unknown_user_leaves_nothing(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        with pytest.raises(NotFound, match="no user 'nobody-here'"):
            await bench.run("true", process={"user": "nobody-here"})
        assert (await bench.service.state()).phase is SandboxPhase.EMPTY


async def test_memory_above_the_limit_ends_the_container(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        spec = bench.spec(
            *("dd", "if=/dev/zero", "of=/dev/null", "bs=64M"),
            resources=Resources(memory=16 << 20),
        )
        await bench.service.bootstrap(spec, Stdio())
        await bench.service.start("init")
        exit_status = await bench.service.wait("init")
    assert exit_status.code == 137
    assert exit_status.out_of_memory


async def test_limits_are_in_the_group_and_usage_is_read_from_it(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        with pytest.raises(InvalidState):
            await bench.service.statistics()
        spec = bench.spec("sleep", "100", resources=Resources(memory=64 << 20, cpus=0.5, pids=10))
        await bench.service.bootstrap(spec, Stdio())
        await bench.service.start("init")
        usage = await bench.service.statistics()
        with trio.fail_after(10):
            while usage.pids > 1:  # threads of the OCI runtime's program, until it is the command
                await trio.sleep(0.01)
                usage = await bench.service.statistics()
        assert usage.memory_limit_bytes == 64 << 20
        assert usage.pids == 1
        assert usage.cpu_nanoseconds > 0
        assert 0 < usage.memory_bytes < 64 << 20
        await bench.service.stop(StopOptions(timeout=0))
        with pytest.raises(InvalidState):
            await bench.service.statistics()


async def test_the_limit_of_processes_holds(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        text = await said(
            bench,
            "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.2 & done; wait",
            resources=Resources(pids=4),
        )
    assert "fork" in text


async def test_binds_are_seen_and_read_only_ones_hold(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("from outside\n")
    mounts = (
        Mount(MountKind.BIND, "/deep/er/rw", str(data)),
        Mount(MountKind.BIND, "/ro", str(data), read_only=True),
        Mount(MountKind.BIND, "/etc/one", str(data / "file"), read_only=True),
        Mount(MountKind.TMPFS, "/cache", options=("size=1m",)),
    )
    async with sandbox(runtime, tmp_path, layer) as bench:
        text = await said(
            bench,
            "exec 2>&1; cat /deep/er/rw/file /etc/one; echo in > /deep/er/rw/new; touch /ro/x; "
            "dd if=/dev/zero of=/cache/big bs=1M count=2 2>&1 | head -1",
            mounts=mounts,
        )
    assert text.startswith("from outside\nfrom outside\n")
    assert "Read-only file system" in text
    assert "No space left" in text
    assert (data / "new").read_text() == "in\n"
    assert sorted(os.listdir(data)) == ["file", "new"]


async def test_a_bind_cannot_be_led_out_by_a_link(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    data = tmp_path / "data"
    data.mkdir()
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "way").symlink_to(outside)
    async with sandbox(runtime, tmp_path, layer) as bench:
        with contextlib.suppress(Unavailable):  # crun refuses it, runc makes the folder inside
            await said(
                bench,
                "touch /way/x/seen",
                layers=(str(evil), str(layer)),
                mounts=(Mount(MountKind.BIND, "/way/x", str(data)),),
            )
    assert os.listdir(outside) == []
    assert os.listdir(data) in (["seen"], [])


async def test_a_missing_bind_source_leaves_nothing(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        with pytest.raises(NotFound, match="/no/such/source"):
            await bench.run("true", mounts=(Mount(MountKind.BIND, "/data", "/no/such/source"),))
        assert not (bench.folder / "bundle" / "run").exists()


async def test_a_read_only_root_is_one(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        text = await said(bench, "touch /x; touch /tmp/y; cat /etc/hostname", read_only_root=True)
    assert text.count("Read-only file system") == 2
    assert "tested" in text


async def test_changes_stay_between_runs_and_layers_do_not_change(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    before = sorted(os.listdir(layer))
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.run("touch", "/kept")
        container, folder = bench.folder.name, bench.folder
        await bench.service.shutdown()
        async with SandboxService(folder, container) as again:
            second = Bench(again, layer, folder, runtime)
            assert await second.run("test", "-e", "/kept") == 0
    assert sorted(os.listdir(layer)) == before


async def test_dial_reaches_the_containers_loopback(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        spec = bench.spec("sh", "-c", "nc -l -p 7000 -e echo hello; sleep 100")
        await bench.service.bootstrap(spec, Stdio())
        await bench.service.start("init")
        with pytest.raises(InvalidArgument):
            await bench.service.dial(0)
        with pytest.raises(Unavailable, match="port 7001"):
            await bench.service.dial(7001)
        with trio.fail_after(5):
            while True:
                try:
                    connection = await bench.service.dial(7000)
                    break
                except Unavailable:
                    await trio.sleep(0.02)  # nothing tells when a program listens
        with socket.socket(fileno=connection.take()) as dialled:
            dialled.settimeout(5)
            assert await trio.to_thread.run_sync(dialled.recv, 100) == b"hello\n"


async def test_a_further_process_is_confined_too(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        await bench.service.start("init")
        out, stdout = pipe()
        spec = ProcessSpec(
            arguments=("sh", "-c", "cat /proc/self/status; id -u; pwd"),
            environment=(PATH,),
            user="ada",
            working_directory="/tmp",
        )
        await bench.service.create_process("x", spec, Stdio(stdout=stdout))
        await bench.service.start("x")
        text = (await trio.to_thread.run_sync(read_all, out)).decode()
        await bench.service.wait("x")
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["CapEff"] == "0000000000000000"
    assert text.endswith("1000\n/tmp\n")


async def test_what_another_helper_made_can_be_ended_by_the_next(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100"), Stdio())
        await bench.service.start("init")
        async with SandboxService(bench.folder, bench.folder.name) as successor:
            assert (await successor.state()).phase is SandboxPhase.RUNNING
            await successor.shutdown()
        # Two helpers are parents here: only one of them can have read the status.
        assert (await bench.service.wait("init")).code in (137, None)


async def test_a_thousand_lines_are_all_in_the_log(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        text = await said(bench, "seq 1 20000")
    assert text == "".join(f"{number}\n" for number in range(1, 20001))


async def test_an_unknown_oci_runtime_is_said(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        wrong = Bench(bench.service, layer, bench.folder, "no-such-runtime")
        with pytest.raises(Unsupported, match="no-such-runtime"):
            await wrong.run("true")


async def test_the_double_is_no_runtime_of_the_machine(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with RecordedRuntime() as recorded:
        machinery = recorded_machinery(tmp_path, recorded)
        assert machinery.runtime(None) is recorded
    async with sandbox(runtime, tmp_path, layer) as bench:
        with pytest.raises(Unsupported):
            await Bench(bench.service, layer, bench.folder, "recorded-not").run("true")


async def test_a_child_that_the_kernel_killed_for_memory_is_told_apart(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        spec = bench.spec(
            *("sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M; echo went on; read line; exit 3"),
            process={"keep_input": True},
            resources=Resources(memory=16 << 20),
        )
        await bench.service.bootstrap(spec, Stdio())
        assert (await bench.service.state()).out_of_memory_kills == 0
        await bench.service.start("init")
        with trio.fail_after(10):
            await bench.said(b"went on")
        state = await bench.service.state()
        assert (state.out_of_memory, state.out_of_memory_kills) == (False, 1)
        exit_status = await bench.service.stop(StopOptions(timeout=0))
        assert (exit_status.code, exit_status.out_of_memory) == (137, False)
        state = await bench.service.state()
        assert state.out_of_memory_kills == 1
