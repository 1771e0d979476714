"""A child of the zygote is a process of its own: nothing of the zygote or of a sibling is in it."""

from __future__ import annotations

import os

import trio

from .conftest import BOUND, System, ask, unit


async def test_a_child_has_its_own_descriptors_alone(system: System) -> None:
    for name in ("one", "two"):
        await system.launcher.register(unit(name))
        await ask(system.paths.run / f"{name}.sock")
    found = (await ask(system.paths.run / "two.sock"))["descriptors"]
    connection_and_listing = {"5", "6"}
    assert set(found) - connection_and_listing == {"0", "1", "2", "3", "4"}
    assert found["0"] == "/dev/null"
    assert found["1"] == found["2"] == str(system.paths.logs / "two.log")
    assert found["3"].startswith("socket:")  # its listener
    assert found["4"].startswith("socket:")  # its lifeline


async def test_children_make_different_random_choices(system: System) -> None:
    seen: list[float] = []
    for name in ("one", "two", "three"):
        seen += (await ask(await system.launcher.register(unit(name))))["random"]
    assert len(set(seen)) == len(seen)


async def test_a_child_is_forked_warm_by_the_zygote_and_belongs_to_the_launcher(
    system: System,
) -> None:
    path = await system.launcher.register(unit("one"))
    found = await ask(path)
    with trio.fail_after(BOUND):
        while not found["preloaded"]:  # the zygote serves while it still imports
            await system.launcher.stop("one")
            found = await ask(path)
    assert found["parent"] == (await system.launcher.status()).pid
    assert found["session"] == found["pid"]


async def test_a_child_has_default_signals_a_plain_umask_and_its_own_environment(
    system: System,
) -> None:
    one = unit("one", environment={"EXTRA": "value"})
    found = await ask(await system.launcher.register(one))
    assert found["handlers"] == [2]  # Python's own, for KeyboardInterrupt
    assert found["mask"] == []
    assert found["umask"] == 0o022
    assert found["directory"] == "/"
    assert found["argv"] == list(one.command)
    environment = found["environment"]
    assert environment["EXTRA"] == "value"
    assert environment["CONTAINER_RUN"] == str(system.paths.run)
    assert environment["LISTEN_PID"] == str(found["pid"])
    assert environment["LISTEN_FDNAMES"] == "one"
    assert "CONTAINER_OWNED" not in environment
    assert environment["PATH"] == os.environ["PATH"]
