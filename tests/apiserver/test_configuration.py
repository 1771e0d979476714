"""Options and an image's configuration become a container; each rule by a call."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from container.apiserver.configuration import make_container
from container.apiserver.names import check_name, new_id, new_name, resolve
from container.apiserver.signals import signal_name
from container.contracts.apiserver import HealthCheck
from container.contracts.images import ImageHealthCheck
from container.contracts.runtime import Mount, MountKind, Resources
from container.ipc import InvalidArgument, NotFound

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def made(options: Any, image: Any) -> Any:
    """Return the container of these."""
    return make_container(options, image, container_id="0123456789ab", name="n", created_at=NOW)


@pytest.mark.parametrize(
    ("given", "config", "arguments"),
    [
        ({}, {"command": ("a", "b")}, ("a", "b")),
        ({"command": ("x",)}, {"command": ("a",)}, ("x",)),
        ({}, {"entrypoint": ("e",), "command": ("a",)}, ("e", "a")),
        ({"command": ("x",)}, {"entrypoint": ("e",), "command": ("a",)}, ("e", "x")),
        ({"entrypoint": ("n",)}, {"entrypoint": ("e",), "command": ("a",)}, ("n",)),
        ({"entrypoint": (), "command": ("x",)}, {"entrypoint": ("e",)}, ("x",)),
    ],
)
def test_the_users_word_wins_over_the_images(
    options: Any, image: Any, given: Any, config: Any, arguments: Any
) -> None:
    assert made(options(**given), image(**config)).process.arguments == arguments


def test_an_entrypoint_takes_the_images_command_with_it(options: Any, image: Any) -> None:
    with pytest.raises(InvalidArgument, match="image demo has no command: name one"):
        made(options(entrypoint=()), image(command=("a",)))


def test_the_environment_is_merged_in_the_order_default_image_user(
    options: Any, image: Any
) -> None:
    container = made(
        options(environment=("A=user", "E="), terminal=True),
        image(environment=("A=image", "B=image", "PATH=/image", "=broken")),
    )
    assert dict(line.split("=", 1) for line in container.process.environment) == {
        "PATH": "/image",
        "HOSTNAME": "0123456789ab",
        "TERM": "xterm",
        "A": "user",
        "B": "image",
        "E": "",
    }
    assert "TERM=xterm" not in made(options(), image()).process.environment


def test_what_the_image_says_is_taken_where_the_user_says_nothing(options: Any, image: Any) -> None:
    config = {
        "user": "app",
        "working_directory": "/srv/",
        "labels": {"a": "image", "b": "image"},
        "stop_signal": "INT",
    }
    container = made(options(labels={"a": "user"}), image(**config))
    assert container.process.user == "app"
    assert container.process.working_directory == "/srv"
    assert container.labels == {"a": "user", "b": "image"}
    assert container.stop_signal == "SIGINT"
    container = made(options(user="0", working_directory="/", stop_signal="9"), image(**config))
    assert (container.process.user, container.process.working_directory) == ("0", "/")
    assert container.stop_signal == "SIGKILL"


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"image": ""}, "no image is named"),
        ({"name": "-x"}, "begins with a letter or digit"),
        ({"name": "a/b"}, "a name has 1 to 63"),
        ({"name": "x" * 64}, "a name has 1 to 63"),
        ({"command": ("a\0b",)}, "NUL"),
        ({"command": ("x" * 200_000,)}, "longer than the kernel allows"),
        ({"environment": ("A",)}, "write NAME=value"),
        ({"environment": ("=v",)}, "write NAME=value"),
        ({"working_directory": "srv"}, "not an absolute path"),
        ({"hostname": "a b"}, "can't be a host name"),
        ({"resources": Resources(memory=1)}, "at least 6 MiB"),
        ({"resources": Resources(cpus=0.0)}, "at least 0.01"),
        ({"resources": Resources(cpus=float("nan"))}, "at least 0.01"),
        ({"resources": Resources(pids=0)}, "out of range"),
        ({"labels": {"": "v"}}, "a label has no name"),
        ({"stop_signal": "SIGNONE"}, "no signal 'SIGNONE'"),
        ({"mounts": (Mount(MountKind.TMPFS, "x"),)}, "destination 'x' is not an absolute"),
        ({"mounts": (Mount(MountKind.TMPFS, "/a/.."),)}, "can't replace the container's root"),
        ({"mounts": (Mount(MountKind.BIND, "/x", "y"),)}, "source 'y' is not an absolute"),
        ({"mounts": (Mount(MountKind.TMPFS, "/x", "/y"),)}, "a tmpfs has no source"),
        (
            {"mounts": (Mount(MountKind.TMPFS, "/x"), Mount(MountKind.TMPFS, "/x/"))},
            "two mounts have the destination '/x'",
        ),
    ],
)
def test_a_bad_option_is_refused_with_its_rule(
    options: Any, image: Any, given: Any, rule: str
) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        made(options(**given), image())


@pytest.mark.parametrize(
    ("given", "own", "made_of"),
    [
        (None, ImageHealthCheck(("probe",), 5.0), HealthCheck(("probe",), 5.0, 30.0, 0.0, 3)),
        (
            HealthCheck(retries=7, interval=1.0),
            ImageHealthCheck(("probe",), 5.0, 2.0, 9.0, 4),
            HealthCheck(("probe",), 1.0, 2.0, 9.0, 7),
        ),
        (
            HealthCheck(command=("mine",)),
            ImageHealthCheck(("probe",), timeout=2.0),
            HealthCheck(("mine",), 30.0, 2.0, 0.0, 3),
        ),
        (HealthCheck(command=()), ImageHealthCheck(("probe",)), None),
        (None, ImageHealthCheck(command=()), None),
        (None, ImageHealthCheck(interval=5.0, problems=("it is malformed",)), None),
        (None, None, None),
    ],
)
def test_the_images_health_check_is_taken_but_for_what_the_user_says(
    options: Any, image: Any, given: Any, own: Any, made_of: Any
) -> None:
    assert made(options(health=given), image(health=own)).health == made_of


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("SIGTERM", "SIGTERM"),
        ("term", "SIGTERM"),
        ("15", "SIGTERM"),
        ("RTMIN+3", "SIGRTMIN+3"),
        ("SIGRTMAX-1", "SIGRTMAX-1"),
        ("37", "SIGRTMIN+3"),
    ],
)
def test_a_signal_has_many_spellings_and_one_name(given: str, name: str) -> None:
    assert signal_name(given) == name


@pytest.mark.parametrize("given", ["", "0", "99", "NONE", "RTMIN+99", "-9", "²"])
def test_a_signal_that_does_not_exist_is_refused(given: str) -> None:
    with pytest.raises(InvalidArgument, match="no signal"):
        signal_name(given)


def test_a_container_is_found_by_name_id_or_unique_prefix() -> None:
    ids = {"0123456789ab", "0199999999ab", "aaaaaaaaaaaa"}
    names = {"web": "0123456789ab", "aaa": "0199999999ab", "reserved": "ffffffffffff"}
    assert resolve("web", names, ids) == "0123456789ab"
    assert resolve("aaaaaaaaaaaa", names, ids) == "aaaaaaaaaaaa"
    assert resolve("aaaa", names, ids) == "aaaaaaaaaaaa"
    assert resolve("aaa", names, ids) == "0199999999ab", "a name goes before a prefix"
    with pytest.raises(InvalidArgument, match="'01' is the beginning of 2 container ids"):
        resolve("01", names, ids)
    with pytest.raises(NotFound) as caught:
        resolve("wab", names, ids)
    assert caught.value.hint == "did you mean 'web'?"
    with pytest.raises(NotFound, match="no container 'reserved'"):
        resolve("reserved", names, ids)


def test_ids_and_names_that_are_made_up_are_free_and_valid() -> None:
    names: set[str] = set()
    ids: set[str] = set()
    for _ in range(500):
        names.add(check_name(new_name(names)))
        ids.add(new_id(ids))
    assert (len(names), len(ids)) == (500, 500)
    assert all(len(made_up) == 12 for made_up in ids)
