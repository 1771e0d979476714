"""Forwarding is switched on where it is needed, and takes nothing from the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from container.ipc import PermissionDenied
from container.network import forwarding
from container.network.forwarding import allow_forwarding
from container.testing.network import NetworkNamespace


def sysctl(host: NetworkNamespace, name: str) -> str:
    """Return a setting's value."""
    return host.run("sysctl", "-n", name).stdout.strip()


async def test_what_is_needed_is_switched_on_and_nothing_else(host: NetworkNamespace) -> None:
    host.run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    await allow_forwarding(ipv4=True, ipv6=False)
    assert sysctl(host, "net.ipv4.ip_forward") == "1"
    assert sysctl(host, "net.ipv6.conf.all.forwarding") == "0"
    await allow_forwarding(ipv4=False, ipv6=True)
    assert sysctl(host, "net.ipv6.conf.all.forwarding") == "1"


async def test_interfaces_keep_hearing_router_advertisements(host: NetworkNamespace) -> None:
    for name, value in (("hears", "1"), ("deaf", "0"), ("al.ways", "2")):
        host.run("ip", "link", "add", name, "type", "bridge")
        host.run("sysctl", "-qw", f"net.ipv6.conf.{name.replace('.', '/')}.accept_ra={value}")
    host.run("ip", "link", "set", "hears", "up")
    await allow_forwarding(ipv4=False, ipv6=True)
    found = {
        name: sysctl(host, f"net.ipv6.conf.{name.replace('.', '/')}.accept_ra")
        for name in ("hears", "deaf", "al.ways", "default")
    }
    assert found == {"hears": "2", "deaf": "0", "al.ways": "2", "default": "2"}


async def test_what_is_on_is_left_alone(host: NetworkNamespace) -> None:
    host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    host.run("sysctl", "-qw", "net.ipv6.conf.lo.accept_ra=1")
    await allow_forwarding(ipv4=True, ipv6=True)
    assert sysctl(host, "net.ipv6.conf.lo.accept_ra") == "1"


@pytest.mark.parametrize(
    ("ipv4", "name"), [(True, "net.ipv4.ip_forward"), (False, "net.ipv6.conf.all.forwarding")]
)
async def test_what_can_not_be_switched_on_is_said_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ipv4: bool, name: str
) -> None:
    # A folder for a file: writing fails as it does where /proc/sys is not writable.
    (tmp_path / name.replace(".", "/")).mkdir(parents=True)
    monkeypatch.setattr(forwarding, "SYSCTL", tmp_path)
    with pytest.raises(PermissionDenied, match=f"sysctl {name} can't be set") as caught:
        await allow_forwarding(ipv4=ipv4, ipv6=not ipv4)
    assert caught.value.hint == f"run as root on the host: sysctl -w {name}=1"
    assert caught.value.details == {"sysctl": name}
