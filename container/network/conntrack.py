"""Have the kernel forget datagrams' flows that a change of published ports has made wrong.

A flow that goes on never meets the rules again: a client that keeps sending would reach the
container that had the port before, or nobody, for ever. TCP's connections end by themselves.

Source: linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h; the filter of a dump is Linux
5.8's (an older kernel does not look at it, so all is looked at here again).
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

from attrs import frozen

_SOURCE_NAT, _DESTINATION_NAT = 1 << 4, 1 << 5

Place = tuple[str, int]
"""Address and port of a container."""


@frozen
class _Flow:
    family: int
    original: Any
    """Its tuple, to name it by."""
    answerer: Place
    """Who answers its datagrams: another than the destination if that was translated."""
    status: int

    @property
    def port(self) -> int:
        """The host port that they are sent to."""
        return self.original.dport


def forget(ports: Mapping[int, Collection[Place]], formerly: Collection[Place]) -> int:
    """Forget the flows of datagrams to host ports that don't lead where the ports do.

    Blocking. Nothing is raised where the kernel can't be asked.

    Args:
        ports: Host ports of UDP, and where each leads now.
        formerly: Where they led before; a flow to anybody else is not ours.

    Returns:
        How many flows there were.
    """
    # Not with this module: it takes a third of a second, and few publish ports of UDP.
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    found = 0
    try:
        for family in _families(ports, formerly):
            with NFCTSocket(nfgen_family=family) as opened:
                kernel: Any = opened
                for flow in tuple(_flows(kernel, family, ports)):
                    if _is_wrong(flow, ports, formerly):
                        found += 1
                        _delete(kernel, flow)
    except (OSError, NetlinkError):
        pass
    return found


def _families(
    ports: Mapping[int, Collection[Place]], formerly: Collection[Place]
) -> frozenset[socket.AddressFamily]:
    places = chain(formerly, *ports.values())
    return frozenset(socket.AF_INET6 if ":" in address else socket.AF_INET for address, _ in places)


def _is_wrong(
    flow: _Flow, ports: Mapping[int, Collection[Place]], formerly: Collection[Place]
) -> bool:
    if flow.port not in ports:
        return False
    if flow.status & _DESTINATION_NAT:
        return flow.answerer in formerly and flow.answerer not in ports[flow.port]
    # It came before the port was published. What only passes by, or goes out, is let alone.
    return not flow.status & _SOURCE_NAT and _is_local(flow.family, flow.original.daddr)


def _is_local(family: int, address: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True


def _flows(kernel: Any, family: int, ports: Collection[int]) -> Iterator[_Flow]:
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    pattern: Any = NFCTAttrTuple  # its types are not written down
    # A look at the kernel's table takes milliseconds, and so does each further one.
    port = next(iter(ports)) if len(ports) == 1 else None
    wanted = pattern(family=family, proto=socket.IPPROTO_UDP, dport=port)
    for message in kernel.dump(tuple_orig=wanted):
        original = pattern.from_netlink(family, message.get_attr("CTA_TUPLE_ORIG"))
        if original.proto != socket.IPPROTO_UDP:
            continue
        reply = pattern.from_netlink(family, message.get_attr("CTA_TUPLE_REPLY"))
        answerer = (reply.saddr, reply.sport)
        yield _Flow(family, original, answerer, message.get_attr("CTA_STATUS") or 0)


def _delete(kernel: Any, flow: _Flow) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        kernel.entry("del", tuple_orig=flow.original)
    except NetlinkError as error:
        if error.code != errno.ENOENT:  # else it ended meanwhile
            raise
