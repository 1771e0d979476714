"""Plugins are found on the search path, first name wins, mistakes are named by path and key."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from container.apiserver.plugins import PluginsService, find_plugins, read_plugin, search_path
from container.ipc import DataLoss, InvalidArgument, NotFound

GOOD = """
abstract = "Runs things"
author = "me"
version = "2"
[services]
load_at_boot = true
run_at_load = false
default_arguments = ["start"]
entry = "pack.age:main"
[[services.services]]
type = "runtime"
description = "d"
"""


def write(folder: Path, name: str, text: str = GOOD) -> Path:
    """Write a plugin's configuration and return its folder."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "config.toml").write_text(text)
    return place


def test_a_plugin_is_what_its_configuration_says(tmp_path: Path) -> None:
    plugin = read_plugin(write(tmp_path, "runner"))
    assert (plugin.name, plugin.description, plugin.author, plugin.version) == (
        "runner",
        "Runs things",
        "me",
        "2",
    )
    assert plugin.command == (str(Path(sys.executable).parent / "runner"), "start")
    assert plugin.entry == "pack.age:main"
    assert plugin.service_types == ("runtime",)
    assert plugin.load_at_boot


def test_its_own_binary_goes_before_the_one_beside_the_interpreter(tmp_path: Path) -> None:
    place = write(tmp_path, "runner")
    (place / "bin").mkdir()
    (place / "bin" / "runner").touch()
    assert read_plugin(place).command[0] == str(place / "bin" / "runner")


def test_the_first_name_wins_and_later_ones_are_shadowed(tmp_path: Path) -> None:
    first = write(tmp_path / "a", "runner")
    second = write(tmp_path / "b", "runner")
    write(tmp_path / "b", "other")
    (tmp_path / "b" / "not-a-plugin").mkdir()
    found, wrong = find_plugins([tmp_path / "a", tmp_path / "missing", tmp_path / "b"])
    assert wrong == {}
    assert sorted(found) == ["other", "runner"]
    assert (found["runner"].path, found["runner"].shadows) == (str(first), (str(second),))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("abstract = ", "Invalid value"),
        ("abstract = 3", "abstract is int, not str"),
        ("color = 'red'", "color is an unknown key"),
        ("[services]\nload_at_boot = 'yes'", "services.load_at_boot is str, not bool"),
        ("[services]\ndefault_arguments = [1]", "services.default_arguments holds something"),
        ("[services]\nentry = 'nothing'", "services.entry 'nothing' is not package.module"),
        ("[[services.services]]\ntype = 'x'", r"services.services\[0\].type is 'x', not one of"),
        (
            "[[services.services]]\ntype = 'core'\nkind = 1",
            r"services.services\[0\].kind is an unknown key",
        ),
    ],
)
def test_a_mistake_is_named_by_path_and_key(tmp_path: Path, text: str, complaint: str) -> None:
    place = write(tmp_path, "bad", text)
    with pytest.raises(InvalidArgument, match=complaint) as caught:
        read_plugin(place)
    assert caught.value.message.startswith(str(place / "config.toml"))


async def test_a_broken_plugin_does_not_hide_the_others(tmp_path: Path) -> None:
    write(tmp_path, "bad", "color = 1")
    write(tmp_path, "runner")
    async with PluginsService([tmp_path]) as plugins:
        assert [plugin.name for plugin in await plugins.list()] == ["runner"]
        assert (await plugins.get("runner")).name == "runner"
        with pytest.raises(DataLoss, match="color is an unknown key"):
            await plugins.get("bad")
        with pytest.raises(NotFound) as caught:
            await plugins.get("runer")
        assert caught.value.hint is not None
        assert "did you mean 'runner'?" in caught.value.hint
        assert str(tmp_path) in caught.value.hint


async def test_the_package_brings_one_that_runs_containers() -> None:
    async with PluginsService() as plugins:
        plugin = await plugins.get("container-runtime")
    assert plugin.service_types == ("runtime",)
    assert plugin.entry == "container.runtime.process:main"


def test_the_search_path_begins_with_what_the_environment_names() -> None:
    path = search_path({"CONTAINER_PLUGIN_PATH": "/a:/b", "XDG_DATA_HOME": "/data"})
    assert [str(folder) for folder in (*path[:2], *path[-2:])] == [
        "/a",
        "/b",
        "/usr/lib/container/plugins",
        "/data/container/plugins",
    ]
