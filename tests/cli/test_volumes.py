"""`container volume`, `rm -v`, `system df` and `system prune`, as a user types them."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from container.contracts.apiserver import ContainerStatus
from container.contracts.images import ImageUsage
from container.contracts.runtime import Mount, MountKind
from container.contracts.usage import (
    ContainerUsage,
    DiskUsage,
    Pruned,
    PruneOptions,
    UsageTotal,
    VolumeUsage,
)
from container.contracts.volumes import VolumeOptions


def test_create_passes_its_options_on_and_prints_the_name(run: Any, session: Any) -> None:
    said = run("volume", "create", "-o", "size=1g", "-l", "who=me", "-d", "far", "data")
    assert (said.status, said.out) == (0, "data\n")
    assert run("volume", "create").out == "f" * 64 + "\n"
    assert session.fake_volumes.calls == [
        ("create", VolumeOptions("data", "far", {"size": "1g"}, {"who": "me"})),
        ("create", VolumeOptions()),
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-o", "size"), '"size" is no option of a driver: use KEY=VALUE'),
        (("-o", "=1g"), '"=1g" is no option of a driver: use KEY=VALUE'),
        (("-o", "size=1g", "-o", "size=2g"), '--opt "size" is given twice'),
    ],
)
def test_bad_options_are_refused_before_anybody_is_asked(
    run: Any, session: Any, arguments: tuple[str, ...], sentence: str
) -> None:
    said = run("volume", "create", *arguments, "data")
    assert (said.status, said.err.splitlines()[0]) == (2, f"container: {sentence}")
    assert session.connections == 0


def test_list_shows_names_drivers_and_users(run: Any, session: Any) -> None:
    session.fake_volumes.add("data", options={"size": "1g"}, used_by=("a", "b"))
    session.fake_volumes.add("alone")
    lines = run("volume", "ls").out.splitlines()
    assert lines[0].split() == ["NAME", "DRIVER", "CONTAINERS", "CREATED"]
    assert [line.split("  ")[0] for line in lines[1:]] == ["alone", "data"]
    assert "local (size=1g)  2" in lines[2]
    assert run("volume", "list", "-q").out == "alone\ndata\n"
    found = json.loads(run("volume", "ls", "--format", "json").out)
    assert [volume["name"] for volume in found] == ["alone", "data"]


def test_inspect_prints_a_list_and_what_was_not_found(run: Any, session: Any) -> None:
    session.fake_volumes.add("data", size_bytes=4096)
    said = run("volume", "inspect", "data", "dota")
    assert said.status == 1
    assert [volume["size_bytes"] for volume in json.loads(said.out)] == [4096]
    assert said.err == "container: no volume 'dota'\nhint: did you mean 'data'?\n"
    assert "size_bytes" in run("volume", "inspect", "--format", "table", "data").out


def test_delete_prints_what_is_gone_and_tells_who_uses_the_others(run: Any, session: Any) -> None:
    session.fake_volumes.add("data")
    session.fake_volumes.add("used", used_by=("web",))
    said = run("volume", "rm", "data", "used", "gone")
    assert (said.status, said.out) == (1, "data\n")
    assert "container: volume used is used by container web\n" in said.err
    assert "container: no volume 'gone'\n" in said.err
    assert run("volume", "delete", "-f", "gone").status == 0


class Typed:
    """A terminal at which somebody types."""

    def __init__(self, text: str) -> None:
        self.text = text

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self.text


@pytest.mark.parametrize("verb", [("volume", "prune"), ("system", "prune")])
def test_pruning_asks_first(
    run: Any, session: Any, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    said = run(*verb)
    assert (said.status, said.err) == (
        1,
        "container: nobody is there to be asked\nhint: --force does it without asking\n",
    )
    monkeypatch.setattr(sys, "stdin", Typed("n\n"))
    said = run(*verb)
    assert (said.status, said.out) == (1, "")
    assert "Go on? [y/N]" in said.err
    assert session.connections == 0
    monkeypatch.setattr(sys, "stdin", Typed("Y\n"))
    assert run(*verb).status == 0
    assert session.connections == 1


def test_volume_prune_prints_names_and_what_was_freed(run: Any, session: Any) -> None:
    session.fake_volumes.add("data")
    assert run("volume", "prune", "-f").out == "data\nfreed 4.1kB\n"
    assert run("volume", "prune", "--all", "--force").status == 0
    assert session.fake_volumes.calls == [("prune", False), ("prune", True)]


def test_system_prune_passes_its_options_on(run: Any, session: Any) -> None:
    session.fake_usage.pruned = Pruned(
        ("old",), ("net",), ("vol",), ("localhost/x:1",), {"images": 1000, "volumes": 4096}
    )
    said = run("system", "prune", "--all", "--volumes", "-f")
    assert said.out.splitlines() == [
        "container old", "network net", "volume vol", "image localhost/x:1", "freed 5.1kB",
    ]  # fmt: skip
    run("system", "prune", "-f")
    assert session.fake_usage.calls == [
        ("prune", PruneOptions(images=True, volumes=True)),
        ("prune", PruneOptions()),
    ]
    assert json.loads(run("system", "prune", "-f", "--format", "json").out)["networks"] == ["net"]


def test_df_shows_sums_and_with_v_all_there_is(run: Any, session: Any) -> None:
    session.fake_usage.usage = DiskUsage(
        (
            UsageTotal("images", 1, 1, 2000, 500),
            UsageTotal("build cache", 0, 0, 0, 0),
        ),
        (ImageUsage(("localhost/x:1",), "sha256:" + "a" * 64, 2000, 500, ("c",)),),
        (
            ContainerUsage(
                *("c" * 12, "web", "localhost/x:1", ContainerStatus.STOPPED),
                *(9000, 4000, 3000, True),
            ),
        ),
        (VolumeUsage("data", "local", False, 7000, ("c",), False),),
    )
    said = run("system", "df").out.splitlines()
    assert said[0].split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    assert said[1].split() == ["images", "1", "1", "2kB", "500B", "(25%)"]
    assert said[2].split() == ["build", "cache", "0", "0", "0B", "0B"]
    said = run("system", "df", "-v").out
    assert "localhost/x:1  aaaaaaaaaaaa  2kB   500B    1" in said
    assert "web   stopped  4kB      3kB  9kB   yes" in said
    assert "data    local   1           7kB   no" in said
    assert json.loads(run("system", "df", "--format", "json").out)["totals"][0]["count"] == 1
    assert session.fake_usage.calls == [("measure", PruneOptions(True, True))] * 3


def test_rm_takes_anonymous_volumes_with_it_if_it_is_asked_to(run: Any, session: Any) -> None:
    for name in ("one", "two"):
        session.fake_containers.add(name, ContainerStatus.STOPPED)
    assert run("rm", "-v", "one").status == 0
    assert run("rm", "two").status == 0
    calls = [call for call in session.fake_containers.calls if call[0] == "delete"]
    assert calls == [("delete", "one", False, True), ("delete", "two", False, False)]


def test_run_passes_volumes_on(run: Any, session: Any) -> None:
    arguments = ("-v", "data:/x:ro", "-v", "/y", "--volumes-from", "web:ro")
    assert run("create", *arguments, "demo").status == 0
    (options,) = session.fake_containers.options
    assert options.mounts == (
        Mount(MountKind.VOLUME, "/x", "data", read_only=True),
        Mount(MountKind.VOLUME, "/y"),
    )
    assert options.volumes_from == ("web:ro",)
