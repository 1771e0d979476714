"""A driver from outside: installed as a distribution of its own, found, and run."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from container.apiserver.plugins import find_plugins, search_path
from container.contracts.network import Network, PublishedPort
from container.contracts.stored import HELPER_DOCUMENT, helper_document
from container.ipc import AlreadyExists, PeerGone, Unsupported
from container.testing.network import NetworkNamespace, network_configuration
from tests.network.conftest import links, wants
from tests.network.neighbourhood import ask, telling
from tests.network.processes import helper

EXAMPLE = Path(__file__).parents[2] / "examples" / "ptp"
NAME = "container-network-ptp"
CONFIGURATION = network_configuration("cables", ("10.77.0.0/24",), ("10.77.0.1",), driver=NAME)


def test_it_imports_nothing_of_the_project_but_ipc_and_contracts():
    tree = ast.parse((EXAMPLE / "container_network_ptp.py").read_text())
    modules = [each.module for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)]
    ours = {each for each in modules if each and each.startswith("container")}
    assert ours == {"container.ipc", "container.contracts.network"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix that the example was installed to."""
    copy = tmp_path_factory.mktemp("example") / "ptp"
    shutil.copytree(EXAMPLE, copy)
    prefix = tmp_path_factory.mktemp("prefix")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "-q")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--prefix", prefix, copy], check=True
    )
    return prefix


async def test_it_is_found_and_attaches_containers_by_cables(
    host: NetworkNamespace, container: Callable[[], NetworkNamespace], installed: Path
):
    plugins = installed / "lib/container/plugins"
    found, wrong = find_plugins(search_path({"CONTAINER_PLUGIN_PATH": str(plugins)}))
    assert wrong == {}
    plugin = found[NAME]
    assert plugin.service_types == ("network",)
    # Beside container's own programs, where it is installed with them.
    command = (str(installed / "bin" / NAME), *plugin.command[1:])
    one, two = container(), container()
    host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site = installed / "lib" / version / "site-packages"
    with tempfile.TemporaryDirectory(prefix="ptp-", dir="/tmp") as folder:
        (Path(folder) / HELPER_DOCUMENT).write_bytes(helper_document(CONFIGURATION))
        line = (*command, "--root", folder, CONFIGURATION.id)
        with helper(Path(folder) / "s", line, PYTHONPATH=str(site)) as process:
            process.start()
            with pytest.RaisesGroup(PeerGone, flatten_subgroups=True, allow_unwrapped=True):
                async with Network.connect(process.at) as network:
                    async with network.attach(wants("one"), one.duplicate()) as kept:
                        assert kept.addresses == ("10.77.0.2/32",)
                        with pytest.raises(Unsupported):
                            async with network.attach(
                                wants("p", ports=(PublishedPort(80),)), two.duplicate()
                            ):
                                pass
                        with pytest.raises(AlreadyExists):
                            async with network.attach(
                                wants("p", addresses=("10.77.0.2",)), two.duplicate()
                            ):
                                pass
                        process.kill()
                        await trio.sleep_forever()
            process.start()
            async with Network.connect(process.at) as network:
                assert (await network.status()).attachments == (kept,)
                async with network.attach(wants("one"), one.duplicate()) as first:
                    assert first == kept
                    async with network.attach(wants("two"), two.duplicate()) as second:
                        assert second.addresses == ("10.77.0.3/32",)
                        (entry,) = await network.lookup("two")
                        assert entry.addresses == ("10.77.0.3",)
                        async with telling(two, 80, 4):
                            assert await ask(one, "10.77.0.3", 80) == "10.77.0.2"
                assert (await network.status()).attachments == ()
    assert links(host) == links(one) == links(two) == set()
