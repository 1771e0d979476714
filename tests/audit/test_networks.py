"""What an audit says of networks: interfaces, addresses and rules that belong to nothing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from container.audit import audit, repair
from container.audit.finding import Finding, Kind
from container.audit.networks import check_networks
from container.contracts.network import AttachmentRequest, Network
from container.contracts.stored import HELPER_DOCUMENT, helper_document
from container.ipc import InvalidState, in_memory
from container.network.bridge import bridge_name, port_name
from container.network.service import NetworkService
from container.storage.paths import Paths
from container.testing.network import (
    NetworkNamespace,
    can_make_namespaces,
    network_configuration,
)
from tests.network.processes import helper

pytestmark = pytest.mark.skipif(
    not can_make_namespaces(), reason="needs root: makes network namespaces"
)
NETWORK = network_configuration("net")
KEY = "0123456789ab"


@pytest.fixture
def host() -> Iterator[NetworkNamespace]:
    """The host of this test's networks."""
    with NetworkNamespace() as namespace, namespace.entered():
        yield namespace


@pytest.fixture
def folder(paths: Paths) -> Path:
    """The folder of the network's helper."""
    made = paths.networks / NETWORK.id
    made.mkdir(parents=True)
    return made


def found(paths: Paths, *containers: str, others: bool = False) -> list[Finding]:
    return list(check_networks(paths, frozenset(containers), others=others))


async def test_a_network_with_an_attachment_is_as_it_should_be(
    host: NetworkNamespace, paths: Paths, folder: Path
):
    request = AttachmentRequest(key=KEY, interface="eth0", name="web")
    with NetworkNamespace() as inside:
        async with in_memory(NetworkService(folder, NETWORK)) as network:
            async with network.attach(request, inside.duplicate()):
                assert found(paths, KEY) == []
                (gone,) = found(paths)
                assert gone.kind is Kind.ADDRESS
                assert f"container {KEY} is gone" in gone.what
            assert found(paths) == []
    assert found(paths) == []


async def test_an_attachment_without_its_interface_or_record_is_told(
    host: NetworkNamespace, paths: Paths, folder: Path
):
    request = AttachmentRequest(key=KEY, interface="eth0", name="web")
    with NetworkNamespace() as inside:
        async with in_memory(NetworkService(folder, NETWORK)) as network:
            async with network.attach(request, inside.duplicate()):
                state = json.loads((folder / "state.json").read_text())
                records = state["records"]
                (folder / "state.json").write_text(json.dumps({**state, "records": {}}))
                (finding,) = found(paths, KEY)
                assert finding.kind is Kind.INTERFACE
                assert finding.subject == port_name(NETWORK.id, KEY)
    (folder / "state.json").write_text(json.dumps({**state, "records": records}))
    (finding,) = found(paths, KEY)
    assert finding.kind is Kind.ADDRESS
    assert "has no interface" in finding.what


async def test_a_bridge_of_a_network_that_is_gone_is_removed_by_the_repair(
    host: NetworkNamespace, paths: Paths, folder: Path
):
    name = bridge_name(NETWORK.id)
    host.run("ip", "link", "add", name, "type", "bridge")
    host.run("ip", "link", "set", name, "alias", f"container network {NETWORK.id} at {folder}")
    host.run("ip", "link", "add", "ctv1", "master", name, "type", "veth", "peer", "ctv2")
    alias = f"container network {NETWORK.id} attachment {KEY}"
    host.run("ip", "link", "set", "ctv1", "alias", alias)
    host.run("nft", f"add table inet container-{NETWORK.id}")
    host.run("ip", "link", "add", "ctbother", "type", "bridge")
    host.run("ip", "link", "set", "ctbother", "alias", "container network 0123456789ab at /other/x")
    report = await audit(paths, settle=0)
    assert [each for each in report.findings if each.subject == name] == []
    os.rmdir(folder)
    report = await audit(paths, settle=0)
    (finding,) = [each for each in report.findings if each.kind is Kind.INTERFACE]
    assert finding.subject == name
    os.mkdir(folder)
    with pytest.raises(InvalidState, match="by now"):
        await repair(paths, finding)
    os.rmdir(folder)
    assert "removed" in (await repair(paths, finding) or "")
    assert found(paths) == []
    assert host.run("nft", "list", "tables").stdout == ""
    left = host.run("ip", "-br", "link").stdout
    assert "ctv1" not in left
    assert "ctbother" in left
    assert await repair(paths, finding) == "it is gone"


def test_rules_of_no_network_are_told_unless_another_system_may_own_them(
    host: NetworkNamespace, paths: Paths, folder: Path
):
    host.run("nft", "add table inet container-0123456789ab; add table inet container-mine")
    (finding,) = found(paths)
    assert finding.kind is Kind.RULES
    assert "nft delete table inet container-0123456789ab" in finding.remedy
    assert found(paths, others=True) == []


def test_a_system_that_never_had_a_network_is_not_looked_at(host: NetworkNamespace, paths: Paths):
    host.run("nft", "add table inet container-0123456789ab")
    assert found(paths) == []


async def test_a_helper_that_belongs_to_no_launcher_is_found_and_killed(
    host: NetworkNamespace, paths: Paths, folder: Path
):
    (folder / HELPER_DOCUMENT).write_bytes(helper_document(NETWORK))
    command = (str(Path(sys.executable).with_name("container-network")), "start", "--root")
    line = (*command, str(folder), NETWORK.id)
    with helper(paths.run / "s", line, **paths.environment()) as process:
        started = process.start()
        async with Network.connect(process.at) as network:
            await network.status()
            report = await audit(paths, settle=0)
            (finding,) = [each for each in report.findings if each.kind is Kind.PROCESS]
            assert finding.pid == started.pid
        assert await repair(paths, finding) == "it was killed"
