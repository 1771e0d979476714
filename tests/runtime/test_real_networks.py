"""A real container's network: its namespace, who shares it, and its files of names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio

from container.contracts.runtime import (
    Mount,
    MountKind,
    NameOptions,
    ProcessSpec,
    SandboxPhase,
    Stdio,
)
from container.ipc import Fd, InvalidArgument, InvalidState, Unavailable

from .conftest import PATH, Bench, pipe, read_all, runtimes, sandbox
from .networks import Helper, network_helper

pytestmark = pytest.mark.parametrize("runtime", runtimes("runc", "crun"))


@pytest.fixture
async def web() -> AsyncGenerator[Helper]:
    with tempfile.TemporaryDirectory(prefix="ctn") as folder:
        async with network_helper(Path(folder), "web") as helper:
            yield helper


async def begun(bench: Bench, *arguments: str, given: Fd | None = None, **options: object) -> int:
    """Run a command; return its pid."""
    await bench.service.bootstrap(bench.spec(*arguments, **options), Stdio(), given)
    return (await bench.service.start("init")).pid


async def asked(bench: Bench, *command: str) -> str:
    """Run a further command to its end; return what it wrote."""
    reading, writing = pipe()
    with writing:
        spec = ProcessSpec(command, (PATH,))
        await bench.service.create_process("asked", spec, Stdio(stdout=writing))
        await bench.service.start("asked")
    await bench.service.wait("asked")
    return read_all(reading).decode()


def network_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


async def test_who_shares_a_namespace_is_not_harmed_by_the_others_end(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer, "second") as second:
        async with sandbox(runtime, tmp_path, layer, "first") as first:
            pid = await begun(first, "sleep", "100")
            with await first.service.network_namespace() as handed:
                own = os.fstat(handed.fileno()).st_ino
                assert own == network_of(pid) != network_of(os.getpid())
                listen = ("sh", "-c", "echo ready; while :; do nc -l -p 7000 -e echo hello; done")
                sharing = await begun(second, *listen, given=handed, network="shared")
            assert network_of(sharing) == own
            await second.said(b"ready")
            await first.service.shutdown()
        assert (await second.service.state()).phase is SandboxPhase.RUNNING
        assert network_of(sharing) == own
        connection = await _dial(second, 7000)
        assert read_all(connection.take()) == b"hello\n"
        with await second.service.network_namespace() as again:
            assert os.fstat(again.fileno()).st_ino == own


async def _dial(bench: Bench, port: int) -> Fd:
    with trio.fail_after(5):
        while True:
            try:
                return await bench.service.dial(port)
            except Unavailable:
                await trio.sleep(0.01)  # nothing tells when somebody listens


async def test_only_a_network_namespace_can_be_shared(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        with Fd(os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)) as other:
            with pytest.raises(InvalidArgument, match="no network namespace"):
                await begun(bench, "true", given=other, network="shared")
        with pytest.raises(InvalidState, match="is not there"):
            await bench.service.network_namespace()


async def test_anybody_may_listen_on_any_port_and_ping(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        script = "cat /proc/sys/net/ipv4/ping_group_range; exec nc -l -p 80 -e echo hello"
        await begun(bench, "sh", "-c", script, process={"user": "1000:1000"})
        connection = await _dial(bench, 80)
        assert read_all(connection.take()) == b"hello\n"
        await bench.said(b"0\t2147483647\n")


async def test_a_container_sees_at_once_which_networks_it_is_in(
    runtime: str, tmp_path: Path, layer: Path, web: Helper
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await begun(bench, "sleep", "100", names=NameOptions(servers=("192.0.2.5",)))
        look = ("cat", "/etc/hosts", "/etc/resolv.conf")
        assert "127.0.0.1\ttested\n" in await asked(bench, *look)
        await bench.service.join_network(web.wanted(bench.folder.name))
        text = await asked(bench, *look)
        assert "10.1.0.2\ttested\n" in text
        assert "nameserver 10.1.0.1\n" in text
        await bench.service.leave_network(web.network.configuration.id)
        text = await asked(bench, *look)
        assert "10.1.0." not in text
        assert "nameserver 192.0.2.5\n" in text


async def test_a_file_of_names_that_the_user_mounts_is_his(
    runtime: str, tmp_path: Path, layer: Path, web: Helper
) -> None:
    own = tmp_path / "hosts"
    own.write_text("192.0.2.1 mine\n")
    mount = Mount(MountKind.BIND, "/etc/hosts", str(own))
    async with sandbox(runtime, tmp_path, layer) as bench:
        networks = (web.wanted(bench.folder.name),)
        script = "cat /etc/hosts /etc/resolv.conf; rm /etc/hosts 2>/dev/null"
        code = await bench.run(
            *("sh", "-c", script), mounts=(mount,), network="networks", networks=networks
        )
        assert code != 0  # a mount point can't be removed
        text = bench.log().decode()
    assert text.startswith("192.0.2.1 mine\n")
    assert "nameserver 10.1.0.1" in text
    assert own.read_text() == "192.0.2.1 mine\n"
    assert web.attached == set()


async def test_the_images_own_hosts_may_be_kept(runtime: str, tmp_path: Path, layer: Path) -> None:
    upper = tmp_path / "upper layer"
    (upper / "etc").mkdir(parents=True)
    (upper / "etc/hosts").write_text("192.0.2.7 baked\n")
    async with sandbox(runtime, tmp_path, layer) as bench:
        layers = (str(upper), str(layer))
        await bench.run("cat", "/etc/hosts", layers=layers, names=NameOptions(keep_hosts=True))
        assert bench.log() == b"192.0.2.7 baked\n"
