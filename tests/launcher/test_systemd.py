"""systemd: unit files that its own checker accepts, and a launcher for which a test plays it."""

from __future__ import annotations

import array
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from container.cli.failure import Refused
from container.cli.session import Session
from container.cli.system import install as verbs
from container.cli.system.install import command as install
from container.cli.system.install import undo as uninstall
from container.contracts.launcher import Launcher
from container.ipc import Fd, InvalidState
from container.launcher.rundir import bind_listener
from container.launcher.systemd import MARK, STORE_BOUND, unit_files, write, written
from container.storage.paths import Paths

from .conftest import BOUND, System, ask, processes_of, unit, until

UNITS = {
    "container.target",
    *(f"container-{name}.service" for name in ("launcher", "apiserver", "images")),
    *(f"container-{name}.socket" for name in ("launcher", "cli", "apiserver", "images")),
}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("user", [False, True])
def test_systemd_s_own_checker_accepts_the_units(paths: Paths, tmp_path: Path, user: bool) -> None:
    files = unit_files(paths, user=user)
    write(files, tmp_path / "units")

    def verify() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                "systemd-analyze",
                "verify",
                "--user" if user else "--system",
                "--man=no",
                *(str(tmp_path / "units" / name) for name in files),
            ],
            env={
                "PATH": os.environ["PATH"],
                "XDG_RUNTIME_DIR": str(tmp_path),
                "HOME": str(tmp_path),
                "SYSTEMD_UNIT_PATH": f"{tmp_path / 'units'}:",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = verify()
    # A key that it does not know is a warning, with status 0; other units of the machine are none
    # of ours.
    said = [line for line in done.stderr.splitlines() if "container" in line]
    assert (done.returncode, said) == (0, [])
    path = tmp_path / "units/container-images.service"
    path.write_text(path.read_text() + "NoSuchKey=1\n")
    assert "NoSuchKey" in verify().stderr


def test_names_with_blanks_and_signs_stay_what_they_are(tmp_path: Path) -> None:
    paths = Paths(root=tmp_path / 'a "b" 100%', run=tmp_path / "r$x")
    text = unit_files(paths, user=False)["container-launcher.service"]
    assert f'Environment="CONTAINER_ROOT={tmp_path}/a \\"b\\" 100%%"' in text
    assert (
        f"ListenStream={tmp_path}/r$x/launcher.sock"
        in (unit_files(paths, user=False)["container-launcher.socket"])
    )


def test_runtime_helpers_outlive_the_launcher_s_unit_and_have_a_store(paths: Paths) -> None:
    text = unit_files(paths, user=False)["container-launcher.service"]
    for line in (
        "KillMode=process",
        "Delegate=yes",
        f"FileDescriptorStoreMax={STORE_BOUND}",
        "NotifyAccess=main",
        "Type=notify",
    ):
        assert line in text.splitlines()
    api = unit_files(paths, user=False)["container-apiserver.service"]
    assert {"KillMode=mixed", "WatchdogSec=30", "WantedBy=container.target"} <= set(
        api.splitlines()
    )


def test_files_of_others_are_never_written_over_nor_removed(paths: Paths, tmp_path: Path) -> None:
    files = unit_files(paths, user=False)
    other = tmp_path / "container-images.service"
    other.write_text("[Unit]\n")
    with pytest.raises(InvalidState, match=r"container-images\.service"):
        write(files, tmp_path)
    assert os.listdir(tmp_path) == [other.name]
    other.unlink()
    assert len(write(files, tmp_path)) == len(files)
    assert write(files, tmp_path) == ()
    (tmp_path / "container-mine.service").write_text("[Unit]\n")
    assert {path.name for path in written(tmp_path)} == set(files)


def test_install_and_uninstall_with_a_folder_touch_nothing_else(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no systemctl
    for name, value in paths.environment().items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "units"
    run = CliRunner()
    done = run.invoke(install, ["--dry-run", "--directory", str(folder)], obj=Session())
    assert (done.exit_code, done.output.count(MARK)) == (0, len(UNITS))
    assert not folder.exists()
    done = run.invoke(install, ["--directory", str(folder)], obj=Session())
    assert done.output == f"8 of 8 unit files written to {folder}\n"
    assert {path.name for path in folder.iterdir()} == UNITS
    done = run.invoke(uninstall, ["--directory", str(folder)], obj=Session())
    assert done.output == f"8 unit files removed from {folder}\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("user", [False, True])
def test_install_tells_systemd_and_uninstall_takes_it_back(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: bool
) -> None:
    heard = tmp_path / "heard"
    programs = tmp_path / "bin"
    programs.mkdir()
    systemctl = programs / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {heard}\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(verbs, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(verbs, "BOOTED", tmp_path / "booted")
    for name, value in paths.environment().items():
        monkeypatch.setenv(name, value)
    scope = ["--user"] if user else ["--system"]
    if not user and os.geteuid() != 0:
        pytest.skip("needs root to be offered the machine's systemd")
    folder = tmp_path / ("config/systemd/user" if user else "system")
    run = CliRunner()

    refused = run.invoke(install, scope, obj=Session())
    assert isinstance(refused.exception, Refused)
    assert "systemd does not run here" in str(refused.exception)
    assert not folder.exists()

    (tmp_path / "booted").mkdir()
    assert run.invoke(install, [*scope, "--now"], obj=Session()).exit_code == 0
    assert {path.name for path in folder.iterdir()} == UNITS
    flag = "--user " if user else ""
    first, enable, start = heard.read_text().splitlines()
    assert (first, start) == (f"{flag}daemon-reload", f"{flag}start container.target")
    enabled = set(enable.removeprefix(f"{flag}enable ").split())
    assert enabled == {
        name
        for name in UNITS
        if name.endswith(".socket") or name in ("container.target", "container-apiserver.service")
    }

    systemctl.write_text("#!/bin/sh\necho refused >&2\nexit 4\n")
    failed = run.invoke(uninstall, scope, obj=Session())
    assert "systemctl disable --now failed: refused" in str(failed.exception)
    assert {path.name for path in folder.iterdir()} == UNITS
    systemctl.write_text("#!/bin/sh\nexit 0\n")
    assert run.invoke(uninstall, scope, obj=Session()).exit_code == 0
    assert list(folder.iterdir()) == []


# --- played ---

START = """
import os, sys
count = int(sys.argv[1])
given = [int(fd) for fd in sys.argv[2].split(',')]
spare = [os.dup2(fd, 100 + n, inheritable=False) for n, fd in enumerate(given)]
for n, fd in enumerate(spare):
    os.dup2(fd, 3 + n, inheritable=True)
os.environ['LISTEN_PID'] = str(os.getpid())
os.environ['LISTEN_FDS'] = str(count)
os.environ['WATCHDOG_PID'] = str(os.getpid())
command = ['-P', '-m', 'container.launcher.process', '--log', '-', '--systemd']
os.execv(sys.executable, [sys.executable, *command])
"""


class Played:
    """systemd: sockets, a socket for notifications, and a descriptor store."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        paths.run.mkdir(mode=0o700)
        paths.logs.mkdir(parents=True)
        self.sockets = {
            "cli": bind_listener(paths.cli_socket)[0],
            "launcher": bind_listener(paths.launcher_socket)[0],
        }
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.notify.bind(str(paths.run / "systemd"))
        self.store: list[tuple[str, Fd]] = []
        self.said: list[dict[str, str]] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the launcher with all that there is for it."""
        given = [(name, sock.fileno()) for name, sock in self.sockets.items()]
        given += [(name, fd.fileno()) for name, fd in self.store]
        environment = {
            **os.environ,
            **self.paths.environment(),
            "LISTEN_FDNAMES": ":".join(name for name, _ in given),
            "NOTIFY_SOCKET": str(self.paths.run / "systemd"),
            "WATCHDOG_USEC": "600000",
        }
        numbers = [fd for _, fd in given]
        with (self.paths.logs / "launcher.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(len(given)), ",".join(map(str, numbers))],
                env=environment,
                pass_fds=numbers,
                stdout=log,
                stderr=log,
            )

    async def hear(self) -> None:
        """Take what the launcher says, as systemd does, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self.notify)
            data, ancillary, _, _ = self.notify.recvmsg(4096, socket.CMSG_SPACE(64))
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            name = fields.get("FDNAME", "stored")
            if fields.get("FDSTOREREMOVE") == "1":
                for entry in [entry for entry in self.store if entry[0] == name]:
                    self.store.remove(entry)
                    entry[1].close()
            for _, _, raw in ancillary:
                self.store += [(name, Fd(fd)) for fd in array.array("i", raw)]
            self.said.append(fields)

    def count(self, **fields: str) -> int:
        """Return how often something was said."""
        return sum(fields.items() <= said.items() for said in self.said)

    def kill(self) -> None:
        """Kill the launcher."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End all of it."""
        for each in (*self.sockets.values(), self.notify, *(fd for _, fd in self.store)):
            each.close()


@pytest.fixture
def played(paths: Paths) -> Iterator[Played]:
    """A systemd that has started nothing."""
    systemd = Played(paths)
    yield systemd
    systemd.close()


@contextlib.asynccontextmanager
async def under(played: Played) -> AsyncGenerator[System]:
    """Hear the launcher and hold a connection to it; connecting finds the socket in any case."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.hear)
        with trio.fail_after(3 * BOUND):  # each thing in it has a bound of its own
            async with Launcher.connect(played.paths.launcher_socket) as launcher:
                yield System(played.paths, launcher)
        nursery.cancel_scope.cancel()


async def test_under_systemd_the_launcher_has_no_services_of_its_own_and_says_that_it_lives(
    played: Played,
) -> None:
    played = played
    played.start()
    async with under(played) as system:
        status = await system.launcher.status()
        assert (status.supervisor, status.services) == ("systemd", ())
        await until(lambda: played.count(READY="1") == 1)
        await until(lambda: played.count(WATCHDOG="1") >= 3)
        await system.launcher.shutdown()
        assert played.process is not None
        process = played.process
        await until(lambda: process.poll() == 0)
    # Its sockets are systemd's, and stay.
    assert played.paths.launcher_socket.is_socket()
    assert played.paths.cli_socket.is_socket()


async def test_what_is_kept_survives_the_launcher_and_its_helper_at_once(
    played: Played,
) -> None:
    played = played
    lasting = unit("lasting", "proper", outlives_launcher=True)
    played.start()
    async with under(played) as system:
        path = await system.launcher.register(lasting)
        for name, text in (("a", "one"), ("b", "two"), ("b", "three")):
            assert (await ask(path, f"keep lasting {name} {text}"))["answer"] is None
        await until(lambda: played.count(FDSTORE="1") == 3)
        assert [name for name, _ in played.store] == ["kept/lasting/a", "kept/lasting/b"]
        helper = (await ask(path))["pid"]
    played.kill()
    os.kill(helper, signal.SIGKILL)
    played.start()
    async with under(played) as system:
        assert await system.launcher.register(lasting) == path
        assert (await system.service("lasting")).kept == 2
        assert (await ask(path, "kept"))["answer"] == [["a", "one"], ["b", "three"]]
        await system.launcher.remove("lasting")
        await until(lambda: played.store == [])
        await system.launcher.shutdown(stop_containers=True)
        process = played.process
        assert process is not None
        await until(lambda: process.poll() == 0)
    await until(lambda: not processes_of(played.paths))


async def test_without_its_sockets_it_says_what_is_missing(played: Played) -> None:
    played = played
    played.sockets.pop("cli").close()
    played.start()
    assert played.process is not None
    process = played.process
    await until(lambda: process.poll() == 2)
    log = (played.paths.logs / "launcher.log").read_text()
    assert "systemd handed over no socket at" in log
