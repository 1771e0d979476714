"""Bad input: one clear sentence, the right status, nothing left. A test per line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from container.contracts.images import Platform
from container.testing.busybox import Entry, write_layout

from .conftest import COMMAND, Machine, private_machine


def test_an_unknown_image_comes_with_a_suggestion(machine: Machine) -> None:
    said = machine.refused("run", "--rm", "--pull", "never", "demmo", "true", status=125)
    assert '"demmo"' in said
    assert "demo" in said.replace("demmo", "")


def test_an_unknown_image_says_that_its_registry_is_not_there(machine: Machine) -> None:
    said = machine.refused("run", "--rm", "demmo", "true", status=125)
    assert "demmo" in said
    assert "127.0.0.1:1" in said


def test_a_taken_name(machine: Machine) -> None:
    machine.run("create", "--name", "taken", "demo", "true")
    said = machine.refused("create", "--name", "taken", "demo", "true", status=125)
    assert "taken" in said
    machine.run("rm", "taken")


def test_an_invalid_name_shows_the_rule(machine: Machine) -> None:
    said = machine.refused("run", "--name", "no/slash", "demo", "true", status=125)
    assert "no/slash" in said
    assert "letters" in said


def test_an_image_of_another_architecture(machine: Machine, tmp_path: Path) -> None:
    other = "arm64" if os.uname().machine == "x86_64" else "amd64"
    folder = tmp_path / "other"
    write_layout(folder, name="other", platform=Platform("linux", other))
    machine.run("image", "load", "-i", str(folder))
    said = machine.refused("run", "--rm", "other", "true", status=125)
    assert other in said
    machine.run("image", "delete", "other")


def test_no_command_in_the_image(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    write_layout(folder, name="bare", config={"Cmd": []})
    machine.run("image", "load", "-i", str(folder))
    assert "command" in machine.refused("run", "--rm", "bare", status=125)
    machine.run("image", "delete", "bare")


def test_an_unreadable_env_file(machine: Machine, tmp_path: Path) -> None:
    missing = tmp_path / "nonesuch"
    assert str(missing) in machine.refused(
        "run", "--env-file", str(missing), "demo", "true", status=125
    )


def test_a_bad_limit(machine: Machine) -> None:
    assert "12parsecs" in machine.refused("run", "-m", "12parsecs", "demo", "true", status=125)


def test_a_bind_source_that_does_not_exist(machine: Machine) -> None:
    said = machine.refused("run", "--rm", "-v", "/nonesuch/x:/data", "demo", "true", status=125)
    assert "/nonesuch/x" in said


def test_an_oci_runtime_that_is_not_there(machine: Machine) -> None:
    said = machine.refused("run", "--rm", "--runtime", "nonesuch", "demo", "true", status=125)
    assert "nonesuch" in said


def test_no_oci_runtime_installed_says_what_to_install(layout: Path) -> None:
    # The system starts in a mount namespace where the runtimes can't be executed.
    hidden = [path for name in ("runc", "crun") if (path := shutil.which(name))]
    script = "".join(f"mount --bind /dev/null {path}; " for path in hidden) + 'exec "$@"'
    with private_machine() as machine:
        subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh",
             str(COMMAND), "image", "load", "-i", str(layout)],
            env=machine.environment, check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        # The API server keeps the connections that it makes at first use.
        machine.refused("run", "--rm", "demo", "true", status=125)
        before = machine.census()
        said = machine.refused("run", "--rm", "demo", "true", status=125)
        assert "runc" in said
        assert "install" in said
        assert machine.settled(before) == before


def test_not_root(machine: Machine) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
         str(COMMAND), "run", "demo", "true"],
        env={**machine.environment, "HOME": "/nonexistent"},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    said = done.stderr.decode()
    if "Permission denied" in said and "hint:" not in said:
        pytest.skip("this Python is not readable for other users")
    assert done.returncode == 125, said
    assert "root" in said
    assert "Traceback" not in said


def test_no_space(layout: Path) -> None:
    with private_machine() as machine:
        machine.root.mkdir(mode=0o700)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(machine.root)], check=True
        )
        try:
            said = machine.refused("image", "load", "-i", str(layout), status=1)
            assert "space" in said
            assert not list((machine.root / "images").glob("ingest/*"))
        finally:
            machine.run("system", "stop", status=None)
            subprocess.run(["umount", "-l", str(machine.root)], check=True)


def test_a_corrupt_archive(machine: Machine, tmp_path: Path) -> None:
    archive = tmp_path / "broken.tar"
    archive.write_bytes(b"this is no archive" * 100)
    assert "broken.tar" in machine.refused("image", "load", "-i", str(archive), status=1)


def test_a_digest_that_does_not_match(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "tampered"
    secret = Entry("secret", os.urandom(5_000_000))
    write_layout(folder, name="tampered", layers=[[secret]])
    blobs = sorted((folder / "blobs/sha256").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(blobs[-1].read_bytes())
    data[len(data) // 2] ^= 1
    blobs[-1].write_bytes(data)
    said = machine.refused("image", "load", "-i", str(folder), "tampered", status=1)
    assert "digest" in said or "sha256" in said
    assert "tampered" not in machine.text("image", "list")


def test_a_registry_that_is_not_there(machine: Machine) -> None:
    assert "127.0.0.1:1" in machine.refused("image", "pull", "127.0.0.1:1/x:1", status=1)


def test_a_daemon_of_another_version(machine: Machine) -> None:
    # A copy of the package that calls itself another version speaks to the running system.
    program = (
        "import container, sys; container.__version__ = '99.0'\n"
        "from container.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "--rm", "demo", "true"],
        env=machine.environment, capture_output=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    said = done.stderr.decode()
    assert done.returncode == 125, said
    assert "99.0" in said
    assert "Traceback" not in said


def test_a_run_directory_of_another_user(layout: Path) -> None:
    with private_machine() as machine:
        machine.run_folder.mkdir(mode=0o700)
        os.chown(machine.run_folder, 65534, 65534)
        said = machine.refused("run", "--rm", "demo", "true", status=125)
        assert str(machine.run_folder) in said
        assert os.listdir(machine.run_folder) == []
        os.chown(machine.run_folder, 0, 0)


def test_broken_bytes_on_a_service_socket_hurt_nobody(machine: Machine) -> None:
    for name in ("apiserver.sock", "images.sock", "launcher.sock"):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(machine.run_folder / name))
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(200))
            stranger.settimeout(10)
            try:
                while stranger.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    assert machine.text("run", "--rm", "demo", "echo", "alive") == "alive\n"


def test_help_needs_no_system(tmp_path: Path) -> None:
    nowhere = {**os.environ, "CONTAINER_RUN": str(tmp_path / "r"), "CONTAINER_ROOT": str(tmp_path)}
    for arguments in (
        ["--help"],
        ["help"],
        ["--version"],
        ["run", "--help"],
        ["completion", "bash"],
    ):
        done = subprocess.run(
            [str(COMMAND), *arguments], env=nowhere, capture_output=True, timeout=30, check=False
        )
        assert done.returncode == 0, done
        assert done.stdout
    assert not (tmp_path / "r").exists()


def test_inspect_of_something_unknown(machine: Machine) -> None:
    assert "nonesuch" in machine.refused("inspect", "nonesuch", status=1)


def test_json_output_is_json(machine: Machine) -> None:
    assert isinstance(json.loads(machine.text("image", "list", "--format", "json")), list)
    assert json.loads(machine.text("system", "status", "--format", "json"))
