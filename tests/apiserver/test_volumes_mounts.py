"""Which mounts a container gets: the user's, other containers', its image's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from container.apiserver.volumes_mounts import (
    check_volume_name,
    new_volume_name,
    plan_mounts,
    split_lender,
    volumes_of,
)
from container.contracts.runtime import Mount, MountKind
from container.ipc import InvalidArgument


def volume(destination: str, source: str = "", **rest: Any) -> Mount:
    return Mount(MountKind.VOLUME, destination, source, **rest)


def plan(*arguments: Any) -> dict[str, Mount]:
    numbers = itertools.count(1)
    planned = plan_mounts(*arguments, new_name=lambda: f"new{next(numbers)}")
    return {mount.destination: mount for mount in planned}


def test_volumes_without_a_name_get_one() -> None:
    planned = plan([volume("/a"), volume("/b", "data"), Mount(MountKind.BIND, "/c", "/host")])
    assert planned["/a"] == volume("/a", "new1", anonymous=True)
    assert planned["/b"] == volume("/b", "data")
    assert planned["/c"] == Mount(MountKind.BIND, "/c", "/host")


def test_an_image_s_volumes_are_anonymous_ones() -> None:
    assert plan([], [], ["/data", "/var/lib/x/"]) == {
        "/data": volume("/data", "new1", anonymous=True),
        "/var/lib/x": volume("/var/lib/x", "new2", anonymous=True),
    }


@pytest.mark.parametrize("nonsense", ["", "relative", "/", "//", "/.", "/a/.."])
def test_nonsense_among_an_image_s_volumes_is_left_out(nonsense: str) -> None:
    assert plan([], [], [nonsense]) == {}


def test_a_mount_of_the_user_s_takes_the_place_of_an_image_s_volume() -> None:
    own = volume("/data/", "mine")
    tmpfs = Mount(MountKind.TMPFS, "/tmp/x")
    assert plan([own, tmpfs], [], ["/data", "/tmp/x"]) == {
        "/data": volume("/data", "mine"),
        "/tmp/x": tmpfs,
    }


def test_volumes_from_others_are_mounted_as_they_are_there_and_never_filled() -> None:
    theirs = [
        volume("/a", "x", anonymous=True),
        volume("/b", "y", read_only=True),
        Mount(MountKind.BIND, "/c", "/host"),
        Mount(MountKind.TMPFS, "/d"),
    ]
    assert plan([], [(theirs, None)], ["/a"]) == {
        "/a": volume("/a", "x", anonymous=True, populate=False),
        "/b": volume("/b", "y", read_only=True, populate=False),
        "/c": Mount(MountKind.BIND, "/c", "/host", populate=False),
    }
    lent = plan([volume("/b", "own")], [(theirs, True)])
    assert [lent["/a"].read_only, lent["/c"].read_only] == [True, True]
    assert lent["/b"] == volume("/b", "own")
    assert plan([], [(theirs, False)])["/b"].read_only is False


def test_of_two_lenders_the_later_one_wins() -> None:
    first, second = [volume("/a", "x")], [volume("/a", "y")]
    assert plan([], [(first, None), (second, None)])["/a"].source == "y"


@pytest.mark.parametrize(
    ("text", "found"),
    [("web", ("web", None)), ("web:ro", ("web", True)), ("web:rw", ("web", False))],
)
def test_a_lender_has_a_mode_or_none(text: str, found: Any) -> None:
    assert split_lender(text) == found


@pytest.mark.parametrize("text", ["", ":ro", "web:", "web:rx", "web:ro:ro"])
def test_another_lender_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="names no container's volumes"):
        split_lender(text)


@pytest.mark.parametrize("name", ["a", "A-b_c.1", "x" * 128])
def test_a_name_may_name_a_volume(name: str) -> None:
    assert check_volume_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".x", "-x", "_x", "a/b", "a b", "a\0", "ä", "x" * 129, "a\n", "a:b"]
)
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="can't name a volume"):
        check_volume_name(name)
    if name:
        with pytest.raises(InvalidArgument, match="can't name a volume"):
            plan([volume("/a", name)])


def test_new_names_are_64_hex_digits_and_never_the_same() -> None:
    one, other = new_volume_name(), new_volume_name()
    assert one != other
    assert len(one) == 64
    assert int(one, 16)


def test_a_volume_that_is_named_anywhere_is_not_anonymous() -> None:
    mounts = [volume("/a", "x", anonymous=True), volume("/b", "x"), volume("/c", "y")]
    assert volumes_of(mounts) == {"x": False, "y": False}
