"""Links reconnect after the other side was restarted; health answers from memory."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from container.apiserver.health import HealthService
from container.apiserver.links import Link, together
from container.contracts.apiserver import Health
from container.ipc import NotFound, Unavailable, open_service
from container.storage.paths import Paths


def service(root: Path, containers: int) -> HealthService:
    """Return a health service that counts so many containers."""
    paths = Paths(root=root, run=root)
    return HealthService(paths, census=lambda: (containers, 1), started=datetime.now(UTC))


async def test_health_answers_with_place_and_count(tmp_path: Path) -> None:
    async with service(tmp_path, 2) as health:
        answer = await health.ping()
    assert (answer.pid, answer.containers, answer.running) == (os.getpid(), 2, 1)
    assert answer.root == str(tmp_path)


async def test_a_link_connects_when_first_used_and_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with Link(Health, path) as health:
        with pytest.raises(Unavailable, match="the health service can't be reached"):
            await health(lambda it: it.ping())
        for containers in (1, 2):
            async with open_service(service(tmp_path, containers), at=path):
                for _ in range(2):
                    with trio.fail_after(10):
                        assert (await health(lambda it: it.ping())).containers == containers


async def test_a_link_that_another_operation_gave_up_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with Link(Health, path) as health, open_service(service(tmp_path, 1), at=path):
        tries = 0

        async def ping(it: Health) -> int:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise trio.ClosedResourceError("this proxy was closed")
            return (await it.ping()).containers

        assert await health(ping) == 1


async def test_an_error_of_the_service_passes_a_link_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s"

    class Refusing(HealthService):
        async def ping(self) -> object:  # type: ignore[override]
            raise NotFound("nothing here")

    refusing = Refusing(Paths(tmp_path, tmp_path), census=lambda: (0, 0), started=datetime.now(UTC))
    async with Link(Health, path) as health, open_service(refusing, at=path):
        with pytest.raises(NotFound, match="nothing here"):
            await health(lambda it: it.ping())


async def test_steps_beside_each_other_fail_with_the_one_error() -> None:
    async def fails() -> None:
        await trio.lowlevel.checkpoint()
        raise NotFound("one")

    with pytest.raises(NotFound, match="one"):
        await together(fails, trio.sleep_forever)

    async def value() -> int:
        await trio.lowlevel.checkpoint()
        return 1

    assert await together(value, value) == [1, 1]
