"""The helper as a process: its command line, and its ends."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from container.contracts.network import Network
from container.contracts.stored import HELPER_DOCUMENT, helper_document
from container.ipc import InvalidArgument, NotFound, PeerGone
from container.network.process import Options, parse, read_configuration
from container.testing.network import NetworkNamespace, network_configuration
from tests.network.conftest import links, wants
from tests.network.processes import Helper, helper

Make = Callable[[], NetworkNamespace]
CONFIGURATION = network_configuration("net")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["start", "--root", "/x", "abc"], Options("abc", Path("/x"))),
        (["--root", "/x", "abc"], Options("abc", Path("/x"))),
        (["start", "abc"], Options("abc")),
    ],
)
def test_the_command_line_is_read(arguments: list[str], options: Options):
    assert parse(arguments) == options


@pytest.mark.parametrize(
    "arguments", [[], ["start"], ["a", "b"], ["--root"], ["--root", "/x"], ["--what", "a"]]
)
def test_a_wrong_command_line_is_refused_with_the_right_one(arguments: list[str]):
    with pytest.raises(InvalidArgument) as caught:
        parse(arguments)
    assert caught.value.hint is None or "container-network start" in caught.value.hint


def test_a_configuration_is_read_as_the_api_server_writes_it(tmp_path: Path):
    (tmp_path / HELPER_DOCUMENT).write_bytes(helper_document(CONFIGURATION))
    assert read_configuration(tmp_path) == CONFIGURATION


def test_a_configuration_that_is_missing_or_torn_is_told_with_its_path(tmp_path: Path):
    with pytest.raises(NotFound, match=r"configuration\.json is missing"):
        read_configuration(tmp_path)
    for torn in ("", "{", "[]", '{"id": 7}'):
        (tmp_path / HELPER_DOCUMENT).write_text(torn)
        with pytest.raises(InvalidArgument, match=r"configuration\.json can't be read"):
            read_configuration(tmp_path)


@pytest.fixture
def process(host: NetworkNamespace) -> Iterator[Helper]:
    """A helper of `CONFIGURATION`, not started yet."""
    with tempfile.TemporaryDirectory(prefix="ctn-", dir="/tmp") as folder:
        place = Path(folder)
        (place / HELPER_DOCUMENT).write_bytes(helper_document(CONFIGURATION))
        command = (sys.executable, "-c", "from container.network.process import main; exit(main())")
        with helper(
            place / "s",
            (*command, "start", "--root", folder, CONFIGURATION.id),
            CONTAINER_ROOT=folder,
            CONTAINER_RUN=folder,
        ) as made:
            yield made


async def test_a_killed_process_is_followed_by_one_that_knows_what_it_held(
    host: NetworkNamespace, container: Make, process: Helper
):
    inside = container()
    process.start()
    with pytest.RaisesGroup(PeerGone, flatten_subgroups=True, allow_unwrapped=True):
        async with Network.connect(process.at) as network:
            async with network.attach(wants(), inside.duplicate()) as attachment:
                process.kill()
                await trio.sleep_forever()
    assert links(inside) == {"eth0"}
    process.start()
    async with Network.connect(process.at) as network:
        assert (await network.status()).attachments == (attachment,)
        async with network.attach(wants(), inside.duplicate()) as again:
            assert again == attachment
        assert links(inside) == set()
    assert process.stop() == 0
    assert links(host) == set()


async def test_a_process_that_is_asked_to_end_leaves_what_is_attached(
    host: NetworkNamespace, container: Make, process: Helper
):
    inside = container()
    process.start()
    with pytest.RaisesGroup(Exception, flatten_subgroups=True, allow_unwrapped=True):
        async with Network.connect(process.at) as network:
            async with network.attach(wants(), inside.duplicate()):
                assert await trio.to_thread.run_sync(process.stop) == 0
                await trio.sleep_forever()
    assert links(inside) == {"eth0"}
    assert "container-" in host.run("nft", "list", "tables").stdout


async def test_a_process_that_is_idle_ends_and_takes_the_network_down(
    host: NetworkNamespace, container: Make, process: Helper
):
    started = process.start(CONTAINER_IDLE_SECONDS="0.8")
    async with Network.connect(process.at) as network:
        async with network.attach(wants(), container().duplicate()):
            await trio.sleep(1)
            assert started.poll() is None
        assert len(links(host)) == 1
    assert await trio.to_thread.run_sync(started.wait, 20) == 0
    assert links(host) == set()
    assert host.run("nft", "list", "tables").stdout == ""


def test_another_network_s_folder_is_refused(process: Helper):
    process.command = (*process.command[:-1], "0" * 12)
    assert process.start().wait(20) == 2
