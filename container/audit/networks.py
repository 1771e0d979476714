"""Networks: what their helpers wrote down, against the interfaces and rules of the kernel.

An interface of ours says in its alias whose it is; a table only of which network. So an interface
of a network that is gone is removed, a table is told of: it may be another system's. All of this
blocks.

Source: ip-link(8), nft(8).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from container.audit.finding import Finding, Kind, Remedy
from container.contracts.stored import CONTAINER_ID
from container.ipc import InvalidState
from container.storage.paths import Paths

PROGRAM_SECONDS = 20.0
_NETWORK_ID = re.compile(r"[0-9a-f]{12}")
_BRIDGE = re.compile(r"container network ([0-9a-f]{12}) at (.+)")
_PORT = re.compile(r"container network ([0-9a-f]{12}) attachment (\S+)")
_STATE = "state.json"
_PLACES = "/usr/sbin:/sbin:/usr/local/sbin"
_LATER = "nothing: the network's helper does it at its next start"


@frozen
class Interfaces:
    """Interfaces of ours on this host, whatever system they belong to."""

    bridges: dict[str, tuple[str, str]]
    """By network: the interface's name, and the folder that its alias tells."""
    ports: dict[tuple[str, str], str]
    """By network and key of the attachment: the interface's name."""


def check_networks(
    paths: Paths, container_ids: frozenset[str], *, others: bool
) -> Iterator[Finding]:
    """Yield what is wrong; nothing where this system has never had a network.

    Args:
        paths: Of the system.
        container_ids: Of its containers.
        others: Whether another system runs on this machine.
    """
    if not paths.networks.is_dir():
        return
    found = interfaces()
    known = {name for name in os.listdir(paths.networks) if _NETWORK_ID.fullmatch(name)}
    for network, (name, folder) in found.bridges.items():
        if Path(folder).parent == paths.networks and network not in known:
            yield Finding(
                Kind.INTERFACE,
                name,
                f"the bridge of network {network}, which is gone",
                "remove it, with its ports and rules",
                Remedy.UNPLUG,
                network,
            )
    for network in sorted(known):
        yield from _attachments(paths.networks / network, network, found, container_ids)
    if others:
        return
    for network in _tables() - known:
        if network not in found.bridges:
            yield Finding(
                Kind.RULES,
                f"container-{network}",
                f"rules of network {network}, which is none of this system's",
                "nothing, since they may be another system's: "
                f"`nft delete table inet container-{network}` removes them",
            )


def _attachments(
    folder: Path, network: str, found: Interfaces, container_ids: frozenset[str]
) -> Iterator[Finding]:
    held = _held(folder)
    if held is None:
        return  # of a driver that keeps none, or keeps it otherwise
    there = {key: name for (owner, key), name in found.ports.items() if owner == network}
    for key, name in sorted(there.items()):
        if key not in held:
            what = f"an interface of network {network} by which nobody is attached"
            yield Finding(Kind.INTERFACE, name, what, _LATER, Remedy.START)
    for key in sorted(held):
        if key not in there:
            yield Finding(
                Kind.ADDRESS,
                f"{network}/{key}",
                f"addresses of network {network} are held by {key}, which has no interface",
                _LATER,
                Remedy.START,
            )
        elif CONTAINER_ID.fullmatch(key) and key not in container_ids:
            yield Finding(
                Kind.ADDRESS,
                f"{network}/{key}",
                f"container {key} is gone and attached to network {network}",
                "nothing: what still runs in its network namespace keeps it",
            )


def _held(folder: Path) -> frozenset[str] | None:
    try:
        state = json.loads((folder / _STATE).read_bytes())
        return frozenset(state["records"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def interfaces() -> Interfaces:
    """Look at the interfaces of this network namespace; none where there is no ip(8)."""
    bridges: dict[str, tuple[str, str]] = {}
    ports: dict[tuple[str, str], str] = {}
    links: list[dict[str, Any]] = _said("ip", "-json", "link", "show") or []
    for link in links:
        alias = str(link.get("ifalias", ""))
        if (bridge := _BRIDGE.fullmatch(alias)) is not None:
            bridges[bridge[1]] = (link["ifname"], bridge[2])
        elif (port := _PORT.fullmatch(alias)) is not None:
            ports[port[1], port[2]] = link["ifname"]
    return Interfaces(bridges, ports)


def unplug(paths: Paths, network: str) -> str:
    """Remove bridge, ports and rules of a network of ours that is gone."""
    if (paths.networks / network).exists():
        raise InvalidState(f"there is a network {network} by now")
    found = interfaces()
    name, folder = found.bridges.get(network, ("", ""))
    if Path(folder).parent != paths.networks:
        return "it is gone"
    for (owner, _), port in found.ports.items():
        if owner == network:
            _run("ip", "link", "delete", port)
    _run("ip", "link", "delete", name)
    if network in _tables():
        _run("nft", "delete", "table", "inet", f"container-{network}")
    return "it was removed, with its rules"


def _tables() -> set[str]:
    said: Any = _said("nft", "-j", "list", "tables") or {}
    names = (each["table"]["name"] for each in said.get("nftables", ()) if "table" in each)
    return {
        name.removeprefix("container-")
        for name in names
        if name.startswith("container-") and _NETWORK_ID.fullmatch(name.removeprefix("container-"))
    }


def _said(*command: str) -> Any:
    """Return what a program prints as JSON; None if it is not there or fails."""
    printed = _run(*command)
    try:
        return json.loads(printed) if printed else None
    except ValueError:
        return None


def _run(program: str, *arguments: str) -> bytes | None:
    path = shutil.which(program) or shutil.which(program, path=_PLACES)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *arguments],
            capture_output=True,
            timeout=PROGRAM_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None
