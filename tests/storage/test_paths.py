"""Where state and sockets live."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from container.storage.paths import Paths


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONTAINER_ROOT", "CONTAINER_RUN", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_roots_paths_are_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Paths.default() == Paths(root=Path("/var/lib/container"), run=Path("/run/container"))


def test_a_users_paths_are_below_the_xdg_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/people/ada")
    assert Paths.default().root == Path("/people/ada/.local/share/container")
    assert Paths.default().run == Path("/tmp/container-1000/container")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Paths.default() == Paths(
        root=Path("/data/container"), run=Path("/run/user/1000/container")
    )


def test_variables_override_them_and_a_child_gets_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONTAINER_ROOT", "relative")
    monkeypatch.setenv("CONTAINER_RUN", "/short")
    paths = Paths.default()
    assert paths == Paths(root=Path.cwd() / "relative", run=Path("/short"))
    assert paths.environment() == {
        "CONTAINER_ROOT": str(Path.cwd() / "relative"),
        "CONTAINER_RUN": "/short",
    }


def test_sockets_are_in_the_run_directory_and_state_in_the_root() -> None:
    paths = Paths(root=Path("/root"), run=Path("/run"))
    sockets = [paths.launcher_socket, paths.apiserver_socket, paths.images_socket, paths.cli_socket]
    assert {path.parent for path in sockets} == {paths.run}
    assert paths.runtime_socket("abc") == Path("/run/runtime/abc.sock")
    assert {paths.images.parent, paths.containers.parent, paths.logs.parent} == {paths.root}
