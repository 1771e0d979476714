"""Volumes by themselves: made, shown, deleted, and what drivers are asked."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from container.apiserver.links import direct
from container.apiserver.volumes import VolumesService
from container.apiserver.volumes_holding import LEAVE_SECONDS
from container.contracts.apiserver import Plugin, Plugins
from container.contracts.stored_volumes import encode_volume
from container.contracts.volumes import Volume, VolumeDriver, VolumeOptions
from container.ipc import (
    AlreadyExists,
    ContainerError,
    DataLoss,
    Fate,
    InvalidArgument,
    InvalidState,
    NotFound,
    PeerGone,
    Unavailable,
)
from container.storage.paths import Paths
from container.testing.clock import hold_autojump_clock
from container.testing.launcher import InProcessLauncher
from tests.apiserver.conftest import EPOCH, moment


class PlayedDriver(VolumeDriver):
    """A driver as a helper has it: what it keeps outlives its connections."""

    def __init__(self) -> None:
        self.volumes: dict[str, dict[str, str]] = {}
        self.mounted: dict[str, set[str]] = {}
        self.calls: list[tuple[str, ...]] = []
        self.errors: dict[str, Exception] = {}
        self.lost = trio.Event()

    def _at(self, *call: str) -> None:
        self.calls.append(call)
        if call[0] in self.errors:
            raise self.errors[call[0]]

    async def create(self, name: str, options: dict[str, str]) -> None:
        self._at("create", name)
        self.volumes[name] = options

    async def delete(self, name: str) -> None:
        self._at("delete", name)
        self.volumes.pop(name, None)
        self.mounted.pop(name, None)

    @asynccontextmanager
    async def mount(self, name: str, key: str) -> AsyncGenerator[str]:
        self._at("mount", name, key)
        self.mounted.setdefault(name, set()).add(key)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._break)
            yield f"/played/{name}"
            nursery.cancel_scope.cancel()
        self._at("unmount", name, key)
        self.mounted[name].discard(key)

    async def _break(self) -> None:
        await self.lost.wait()
        raise PeerGone("the driver's helper died", fate=Fate.UNKNOWN)

    def die(self) -> None:
        lost, self.lost = self.lost, trio.Event()
        lost.set()

    async def usage(self, name: str) -> int:
        self._at("usage", name)
        return 4711


class DriverPlugins(Plugins):
    async def list(self) -> tuple[Plugin, ...]:
        await trio.lowlevel.checkpoint()
        return (
            Plugin("container-network", "/n", "", "", "", ("network",), ("n",), None, False),
            Plugin("played", "/p", "", "", "", ("volume",), ("played",), None, False),
        )

    async def get(self, name: str) -> Plugin:
        raise NotImplementedError


class Place:
    """A root, and one service of volumes after the other in it."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(root=folder / "root", run=folder / "run")
        self.driver = PlayedDriver()
        self.reachable = True
        self.launcher = InProcessLauncher(self.paths, None)  # type: ignore[arg-type]

    @asynccontextmanager
    async def connect(self, path: str) -> AsyncGenerator[VolumeDriver]:
        assert path == str(self.paths.volume_socket("played"))
        if not self.reachable:
            raise PeerGone("nobody listens", fate=Fate.REFUSED)
        yield self.driver

    def service(self) -> VolumesService:
        return VolumesService(
            self.paths,
            launcher=direct(self.launcher),
            plugins=DriverPlugins(),
            clock=moment,
            connect=self.connect,
        )

    def names(self) -> list[str]:
        return sorted(os.listdir(self.paths.volumes))


@pytest.fixture
async def place(tmp_path: Path, autojump_clock: Any) -> AsyncGenerator[Place]:
    with hold_autojump_clock():
        found = Place(tmp_path)
        async with found.launcher:
            yield found


@pytest.fixture
async def volumes(place: Place) -> AsyncGenerator[VolumesService]:
    async with place.service() as service:
        yield service


async def test_a_volume_is_made_listed_and_deleted(
    autojump_clock: Any, place: Place, volumes: VolumesService
) -> None:
    made = await volumes.create(VolumeOptions("data", labels={"who": "me"}))
    where = f"{place.paths.volumes}/data/_data"
    assert made == Volume("data", "local", made.created_at, labels={"who": "me"}, mountpoint=where)
    assert os.stat(made.mountpoint).st_mode & 0o7777 == 0o755
    assert await volumes.list() == (made,)
    found = await volumes.get("data")
    assert found.size_bytes is not None
    assert found.size_bytes >= 4096
    await volumes.delete("data")
    assert await volumes.list() == ()
    assert place.names() == []


async def test_an_anonymous_volume_has_64_hex_digits(
    autojump_clock: Any, volumes: VolumesService
) -> None:
    made = await volumes.create(VolumeOptions())
    assert made.anonymous
    assert len(made.name) == 64


async def test_one_that_is_there_is_returned_as_it_is(
    autojump_clock: Any, volumes: VolumesService
) -> None:
    made = await volumes.create(VolumeOptions("data", labels={"a": "1"}))
    assert await volumes.create(VolumeOptions("data", labels={"b": "2"})) == made
    with pytest.raises(AlreadyExists, match="volume data is there, with the driver local and no"):
        await volumes.create(VolumeOptions("data", driver="played"))
    with pytest.raises(AlreadyExists, match="no options"):
        await volumes.create(VolumeOptions("data", options={"size": "8m"}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (VolumeOptions("a/b"), "can't name a volume"),
        (VolumeOptions("", options={}), "can't name a volume"),
        (VolumeOptions("x", options={"sise": "1g"}), "the driver local has no option 'sise'"),
        (VolumeOptions("x", options={"size": "big"}), "'big' is no size"),
        (VolumeOptions("x", options={"size": ""}), "'' is no size"),
        (VolumeOptions("x", options={"size": "-1g"}), "'-1g' is no size"),
        (VolumeOptions("x", options={"size": "1k"}), "a size of 1k is out of range"),
        (VolumeOptions("x", options={"size": "17t"}), "a size of 17t is out of range"),
        (VolumeOptions("x", labels={"": "x"}), "a volume's label has no name"),
        (VolumeOptions("x", labels={"x": "\0"}), "too long, or has a NUL"),
        (VolumeOptions("x", options={"size": "1g" * 4096}), "too long, or has a NUL"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    autojump_clock: Any, place: Place, volumes: VolumesService, options: VolumeOptions, said: str
) -> None:
    with pytest.raises(InvalidArgument, match=said):
        await volumes.create(options)
    assert place.names() == []


async def test_what_is_not_there_is_told_with_a_close_match(
    autojump_clock: Any, volumes: VolumesService
) -> None:
    await volumes.create(VolumeOptions("database"))
    with pytest.raises(NotFound, match="no volume 'databse'") as raised:
        await volumes.get("databse")
    assert raised.value.hint == "did you mean 'database'?"
    with pytest.raises(NotFound):
        await volumes.delete("databse")
    await volumes.delete("databse", force=True)
    with pytest.raises(NotFound, match="no volume driver 'plaid'") as raised:
        await volumes.create(VolumeOptions("x", driver="plaid"))
    assert raised.value.hint == "did you mean 'played'?"
    with pytest.raises(NotFound, match="no volume driver 'container-network'"):
        await volumes.create(VolumeOptions("x", driver="container-network"))


async def test_prune_deletes_anonymous_ones_and_with_everything_the_named_too(
    autojump_clock: Any,
    volumes: VolumesService,
) -> None:
    named = await volumes.create(VolumeOptions("data"))
    other = await volumes.create(VolumeOptions())
    (gone,) = await volumes.prune()
    assert (gone.name, bool(gone.size_bytes)) == (other.name, True)
    assert [volume.name for volume in await volumes.prune(everything=True)] == [named.name]
    assert await volumes.list() == ()


async def test_many_at_once_make_one_volume(autojump_clock: Any, volumes: VolumesService) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(volumes.create, VolumeOptions("data"))
    assert len(await volumes.list()) == 1


async def test_a_full_disk_leaves_nothing(
    autojump_clock: Any, place: Place, volumes: VolumesService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match="/x can't be written: No space left on device"):
            await volumes.create(VolumeOptions("data"))
    assert await volumes.list() == ()
    assert place.names() == []


@pytest.mark.parametrize("operation", ["create", "delete"])
async def test_an_error_at_any_sync_is_told_and_the_next_service_finds_what_was_told(
    autojump_clock: Any, place: Place, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    count, failed = 0, True
    while failed:
        left = count
        failed = False

        def limited(descriptor: int) -> None:
            nonlocal left, failed
            left -= 1
            if left < 0:
                failed = True
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/x")

        async with place.service() as volumes:
            if operation == "delete":
                await volumes.create(VolumeOptions("data"))
            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", limited)
                with contextlib.suppress(Unavailable):
                    if operation == "delete":
                        await volumes.delete("data")
                    else:
                        await volumes.create(VolumeOptions("data"))
            told = [volume.name for volume in await volumes.list()]
        async with place.service() as volumes:
            assert [volume.name for volume in await volumes.list()] == told, count
            await trio.sleep(200)
            assert place.names() == told, count
            await volumes.delete("data", force=True)
        count += 1
    assert count > (1 if operation == "delete" else 4)


async def test_a_broken_document_is_set_aside_and_never_taken_for_nothing(
    autojump_clock: Any, place: Place
) -> None:
    async with place.service() as volumes:
        await volumes.create(VolumeOptions("data"))
        await volumes.create(VolumeOptions("other"))
    (place.paths.volumes / "data/volume.json").write_text("{")
    (place.paths.volumes / "other/volume.json").write_bytes(
        encode_volume(Volume("third", "local", EPOCH))
    )
    async with place.service() as volumes:
        assert await volumes.list() == ()
        with pytest.raises(DataLoss, match=r"data/volume\.json is torn"):
            await volumes.create(VolumeOptions("data"))
        with pytest.raises(DataLoss, match="is of another volume, third"):
            await volumes.get("other")
        with pytest.raises(DataLoss):
            await volumes.delete("data")
        assert place.names() == ["data", "other"]
        await volumes.delete("data", force=True)
        assert place.names() == ["other"]


async def test_strangers_in_the_folder_are_left_alone(autojump_clock: Any, place: Place) -> None:
    (place.paths.volumes / ".hidden").mkdir(parents=True)
    (place.paths.volumes / "not a name").touch()
    async with place.service() as volumes:
        assert await volumes.list() == ()
        await volumes.prune(everything=True)
    assert place.names() == [".hidden", "not a name"]


# --- a driver that is a helper ---


async def test_a_plugin_keeps_the_data_of_its_volumes(
    autojump_clock: Any, place: Place, volumes: VolumesService
) -> None:
    made = await volumes.create(VolumeOptions("far", "played", {"server": "x"}))
    assert (made.driver, made.mountpoint) == ("played", "")
    assert place.driver.volumes == {"far": {"server": "x"}}
    assert (await volumes.get("far")).size_bytes == 4711
    (service,) = (await place.launcher.status()).services
    assert service.name == "volume.played"
    await volumes.delete("far")
    assert place.driver.volumes == {}
    assert place.names() == []


async def test_what_a_plugin_refuses_is_not_there(
    autojump_clock: Any, place: Place, volumes: VolumesService
) -> None:
    place.driver.errors["create"] = InvalidArgument("no such option")
    with pytest.raises(InvalidArgument, match="no such option"):
        await volumes.create(VolumeOptions("far", "played"))
    assert await volumes.list() == ()
    assert place.names() == []
    assert place.driver.calls == [("create", "far"), ("delete", "far")]


async def test_a_plugin_that_is_away_costs_no_volume_and_no_name(
    autojump_clock: Any, place: Place
) -> None:
    async with place.service() as volumes:
        await volumes.create(VolumeOptions("far", "played"))
        place.reachable = False
        with pytest.raises(Unavailable, match="driver played can't be reached"):
            await volumes.get("far")
        await volumes.delete("far")  # it is gone; its data goes when the driver is back
        assert await volumes.list() == ()
        with pytest.raises(Unavailable):
            await volumes.create(VolumeOptions("far", "played"))
        assert place.driver.volumes == {"far": {}}
    async with place.service() as volumes:
        assert await volumes.list() == ()
        place.reachable = True
        await trio.sleep(100)
        assert place.driver.volumes == {}
        assert place.names() == []
        await volumes.create(VolumeOptions("far", "played"))


async def test_a_volume_that_was_being_made_is_deleted_by_its_driver(
    autojump_clock: Any, place: Place
) -> None:
    async with place.service() as volumes:
        place.driver.errors["create"] = ContainerError("killed here")
        place.driver.errors["delete"] = ContainerError("and here")
        with pytest.raises(ContainerError, match="killed here"):
            await volumes.create(VolumeOptions("far", "played"))
        assert place.names() == [".far.new"]
    place.driver.errors.clear()
    place.driver.volumes["far"] = {}
    async with place.service():
        await trio.sleep(10)
        assert place.driver.volumes == {}
        assert place.names() == []


async def test_a_half_made_local_volume_is_gone_at_the_next_start(
    autojump_clock: Any, place: Place
) -> None:
    for name in (".a.new", ".b.gone", ".c.new"):
        (place.paths.volumes / name / "_data").mkdir(parents=True)
        volume = Volume(name.split(".")[1], "local", EPOCH)
        if name != ".c.new":
            (place.paths.volumes / name / "volume.json").write_bytes(encode_volume(volume))
            (place.paths.volumes / name / "volume.json").chmod(0o600)
    async with place.service() as volumes:
        await trio.sleep(10)
        assert await volumes.list() == ()
        assert place.names() == []


# --- holding ---


def container(world: Any, *mounts: Any) -> Any:
    from attrs import evolve

    from tests.audit.conftest import container as make

    return evolve(make("0123456789ab"), mounts=mounts)


async def held(
    volumes: VolumesService, stack: AsyncExitStack, driver: str = "played"
) -> tuple[Any, Any]:
    from container.contracts.runtime import Mount, MountKind

    await volumes.create(VolumeOptions("far", driver))
    mine = container(None, Mount(MountKind.VOLUME, "/d", "far", read_only=True))
    volumes.claim(mine)
    (mount,) = await volumes.hold(mine, first=False)
    return mine, mount


async def test_a_run_holds_its_volumes_at_the_driver(
    autojump_clock: Any, place: Place, volumes: VolumesService
) -> None:
    async with AsyncExitStack() as stack:
        mine, mount = await held(volumes, stack)
    assert (mount.source, mount.read_only) == ("/played/far", True)
    assert place.driver.mounted == {"far": {mine.id}}
    with pytest.raises(InvalidState, match="volume far is used by container"):
        await volumes.delete("far")
    assert (await volumes.get("far")).used_by == (mine.id,)
    assert await volumes.hold(mine, first=False) == (mount,)
    await volumes.release(mine.id)
    await volumes.release(mine.id)
    assert place.driver.mounted == {"far": set()}
    assert place.driver.calls.count(("mount", "far", mine.id)) == 1
    with pytest.raises(InvalidState):
        await volumes.delete("far")
    volumes.drop(mine.id)
    await volumes.delete("far")


async def test_a_driver_that_dies_is_asked_again_by_the_same_key(
    autojump_clock: Any, place: Place, volumes: VolumesService
) -> None:
    async with AsyncExitStack() as stack:
        mine, _ = await held(volumes, stack)
    for count in (2, 3):
        place.driver.die()
        await trio.sleep(60)
        assert place.driver.calls.count(("mount", "far", mine.id)) == count
        assert place.driver.mounted == {"far": {mine.id}}
    await volumes.release(mine.id)
    assert place.driver.mounted == {"far": set()}


async def test_a_driver_that_is_away_delays_the_end_of_a_run_within_a_bound(
    autojump_clock: Any, place: Place, volumes: VolumesService
) -> None:
    async with AsyncExitStack() as stack:
        mine, _ = await held(volumes, stack)
    place.reachable = False
    place.driver.die()
    began = trio.current_time()
    await volumes.release(mine.id)
    assert trio.current_time() - began <= LEAVE_SECONDS + 1
    assert place.driver.mounted == {"far": {mine.id}}


async def test_the_next_service_takes_what_was_held_up_and_lets_it_go(
    autojump_clock: Any, place: Place
) -> None:
    async with place.service() as volumes, AsyncExitStack() as stack:
        mine, mount = await held(volumes, stack)
    assert place.driver.mounted == {"far": {mine.id}}  # it broke off, it was not left
    async with place.service() as volumes:
        volumes.claim(mine)
        volumes.take_up(mine)
        assert (await volumes.hold(mine, first=False))[0].source == mount.source
        await volumes.release(mine.id)
    assert place.driver.mounted == {"far": set()}


async def test_what_an_earlier_service_left_mounted_for_nobody_is_let_go(
    autojump_clock: Any, place: Place
) -> None:
    async with place.service() as volumes, AsyncExitStack() as stack:
        mine, _ = await held(volumes, stack)
    async with place.service() as volumes:
        volumes.claim(mine)
        await volumes.leave_stale(mine)
        assert place.driver.mounted == {"far": set()}


async def test_of_two_volumes_none_is_held_if_one_can_t_be(
    autojump_clock: Any, place: Place, volumes: VolumesService
) -> None:
    from container.contracts.runtime import Mount, MountKind

    for name in ("a", "b"):
        await volumes.create(VolumeOptions(name, "played"))
    mine = container(None, *(Mount(MountKind.VOLUME, f"/{it}", it) for it in ("a", "b", "gone")))
    volumes.claim(mine)
    with pytest.raises(NotFound, match=r"volume gone of container .* is not there any more"):
        await volumes.hold(mine, first=False)
    assert place.driver.mounted == {}
    await volumes.create(VolumeOptions("gone", "played"))
    original = place.driver._at

    def at(*call: str) -> None:
        if call[:2] == ("mount", "b"):
            raise Unavailable("not today")
        original(*call)

    place.driver._at = at  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="not today"):
        await volumes.hold(mine, first=False)
    assert place.driver.mounted == {"a": set()}


async def test_while_a_container_can_t_be_read_no_volume_is_deleted(
    autojump_clock: Any,
    volumes: VolumesService,
) -> None:
    await volumes.create(VolumeOptions("data"))
    await volumes.create(VolumeOptions())
    volumes.set_uncertain(["abc"])
    with pytest.raises(InvalidState, match="container abc can't be read, and may use volume data"):
        await volumes.delete("data")
    assert await volumes.prune(everything=True) == ()
    assert len(await volumes.list()) == 2
    volumes.set_uncertain([])
    assert len(await volumes.prune(everything=True)) == 2
