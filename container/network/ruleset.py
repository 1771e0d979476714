"""The table of one network, as commands of nft's JSON.

Nothing here runs anything: values in, commands out. Chains, by hook and priority:

| chain | hook | does |
|---|---|---|
| `early` | prerouting, raw | drops what poses as loopback, and strangers at the DNS ports |
| `asking` | prerouting, before dstnat | DNS at the gateway, before any published port 53 |
| `arriving` | prerouting, dstnat | published ports |
| `own` | output, dstnat | published ports, for the host itself |
| `passing` | forward, filter | isolation; what was not published is not reached from outside |
| `leaving` | postrouting, srcnat | masquerade |

An `accept` of ours ends only the chain that it is in: another table's drop still counts. A drop of
ours concerns packets into or out of our bridge alone.

A published port is an element of two maps, one that gives the address and one that gives the port:
a map that gives both at once (nft 0.9.4) makes nft 1.0.6 crash when it comes as JSON. Maps `any`
are keyed by protocol and port and serve all addresses of the host; maps `one` have the address too.

Source: libnftables-json(5), nft(8).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from container.contracts.network import NetworkConfiguration, Protocol

BRIDGES = "ctb*"
"""All bridges of networks of this kind."""
DNS_PORT = 53

Json = dict[str, object]
Key = tuple[str | int, ...]
Element = tuple[str, Key, str | int | None]
"""Name of a map or set, parts of the key, and value (None: of a set)."""


@frozen
class DnsAt:
    """Where the network's DNS server listens for one gateway address."""

    gateway: str
    """The address that containers ask at port 53."""
    udp_port: int
    tcp_port: int


@frozen
class Forwarded:
    """One host port that leads to one port of a container."""

    protocol: Protocol
    host_address: str
    """Of the host; empty is every one of the family of `address`."""
    host_port: int
    address: str
    """The container's, without prefix length, of the same family."""
    container_port: int
    keep_source: bool = True
    """Whether the container sees who called. Not where its way out is another network, by which
    its answers would leave: they come back here only if the gateway called."""


@frozen
class Ruleset:
    """What decides the table's text, but for the published ports."""

    network: NetworkConfiguration
    bridge: str
    dns: tuple[DnsAt, ...] = ()
    loopback: bool = True
    """Whether rules may lead 127.0.0.0/8 to the bridge, which needs its `route_localnet`."""

    @property
    def table(self) -> str:
        """The table's name; its family is `inet`."""
        return f"container-{self.network.id}"

    def whole(self, elements: Iterable[Element]) -> list[Json]:
        """Return the commands that make the table anew, whatever is there."""
        table = {"family": "inet", "name": self.table}
        # A table can be deleted only if it is there.
        make: Json = {"add": {"table": table}}
        commands: list[Json] = [make, *self.none(), make]
        commands += self._maps()
        commands += self._early() + self._published()
        commands += (
            self._asking() + self._arriving() + self._own() + self._passing() + self._leaving()
        )
        return commands + self.adding(elements)

    def none(self) -> list[Json]:
        """Return the command that takes the table away."""
        return [{"delete": {"table": {"family": "inet", "name": self.table}}}]

    def adding(self, elements: Iterable[Element]) -> list[Json]:
        """Return the commands that add elements."""
        return self._each_map("add", elements)

    def deleting(self, elements: Iterable[Element]) -> list[Json]:
        """Return the commands that delete elements, which must be there."""
        return self._each_map("delete", elements)

    def _each_map(self, verb: str, elements: Iterable[Element]) -> list[Json]:
        of_map: dict[str, list[object]] = {}
        for name, parts, value in sorted(elements, key=repr):
            key: object = {"concat": list(parts)} if len(parts) > 1 else next(iter(parts))
            of_map.setdefault(name, []).append(key if value is None else [key, value])
        return [
            {verb: {"element": {**self._here(), "name": name, "elem": found}}}
            for name, found in of_map.items()
        ]

    def _here(self) -> Json:
        return {"family": "inet", "table": self.table}

    def _chain(self, name: str, *rules: Sequence[object], **hook: object) -> list[Json]:
        base = {"policy": "accept", **hook} if hook else {}
        chain: Json = {**self._here(), "name": name, **base}
        commands: list[Json] = [{"add": {"chain": chain}}]
        here: Json = {**self._here(), "chain": name}
        commands.extend({"add": {"rule": {**here, "expr": [*rule]}}} for rule in rules)
        return commands

    def _maps(self) -> list[Json]:
        commands: list[Json] = []
        port = ["inet_proto", "inet_service"]
        for digit, kind in (("4", "ipv4_addr"), ("6", "ipv6_addr")):
            for scope, key in (("any", port), ("one", [kind, *port])):
                for what, value in (("address", kind), ("port", "inet_service")):
                    name = f"{scope}{digit}_{what}"
                    found: Json = {**self._here(), "name": name, "type": key, "map": value}
                    commands.append({"add": {"map": found}})
            masked: Json = {**self._here(), "name": f"masked{digit}", "type": kind}
            commands.append({"add": {"set": masked}})
        return commands

    def _early(self) -> list[Json]:
        ours = _is("iifname", self.bridge)
        strangers = _is("iifname", {"set": [self.bridge, "lo"]}, op="!=")
        rules: list[Sequence[object]] = [
            # What route_localnet lets in: loopback is for the host alone.
            (_field("ip", "daddr", _prefix("127.0.0.0/8")), ours, _DROP),
            (_field("ip", "saddr", _prefix("127.0.0.0/8")), ours, _DROP),
        ]
        # The ports answer whoever reaches them: nobody from elsewhere may.
        for at in self.dns:
            to = _field(_family(at.gateway), "daddr", at.gateway)
            for protocol, port in (("udp", at.udp_port), ("tcp", at.tcp_port)):
                # The cheapest first: every packet of the machine comes by.
                rules.append((to, _field(protocol, "dport", port), strangers, _DROP))
        return self._chain("early", *rules, type="filter", hook="prerouting", prio=-300)

    def _published(self) -> list[Json]:
        rules: list[Sequence[object]] = []
        # Of the address too first: it is the narrower one.
        for family, digit in (("ip", "4"), ("ip6", "6")):
            for scope in ("one", "any"):
                port = [_META_PROTOCOL, _payload("th", "dport")]
                if scope == "one":
                    port.insert(0, _payload(family, "daddr"))
                key = {"concat": port}
                address, number = (
                    {"map": {"key": key, "data": f"@{scope}{digit}_{what}"}}
                    for what in ("address", "port")
                )
                rules.append(({"dnat": {"family": family, "addr": address, "port": number}},))
        return self._chain("published", *rules)

    def _to_published(self) -> list[Sequence[object]]:
        local = {"fib": {"result": "type", "flags": ["daddr"]}}
        return [
            # No rule can lead these on: they are relayed.
            (_field("ip6", "daddr", "::1"), _ACCEPT),
            (_field("ip6", "daddr", _prefix("fe80::/10")), _ACCEPT),
            (_match(local, "local"), {"jump": {"target": "published"}}),
        ]

    def _asking(self) -> list[Json]:
        rules: list[Sequence[object]] = []
        for at in self.dns:
            family = _family(at.gateway)
            to = _is("iifname", self.bridge), _field(family, "daddr", at.gateway)
            for protocol, port in (("udp", at.udp_port), ("tcp", at.tcp_port)):
                lead = {"dnat": {"family": family, "addr": at.gateway, "port": port}}
                rules.append((*to, _field(protocol, "dport", DNS_PORT), lead))
        return self._chain("asking", *rules, type="nat", hook="prerouting", prio=-101)

    def _arriving(self) -> list[Json]:
        # A neighbour's packet to 127.0.0.1 would be led on before routing refuses it.
        loopback = (_field("ip", "daddr", _prefix("127.0.0.0/8")), _ACCEPT)
        rules = (loopback, *self._to_published())
        return self._chain("arriving", *rules, type="nat", hook="prerouting", prio=-100)

    def _own(self) -> list[Json]:
        rules = self._to_published()
        if not self.loopback:
            rules.insert(0, (_field("ip", "daddr", _prefix("127.0.0.0/8")), _ACCEPT))
        return self._chain("own", *rules, type="nat", hook="output", prio=-100)

    def _passing(self) -> list[Json]:
        here, there = _is("iifname", self.bridge), _is("oifname", self.bridge)
        known = _match({"ct": {"key": "state"}}, ["established", "related"], op="in")
        inward: list[Sequence[object]] = [(_is("iifname", self.bridge), _ACCEPT)]
        outward: list[Sequence[object]] = []
        if not self.network.internal:
            inward += [(known, _ACCEPT), (_PUBLISHED, _ACCEPT)]
            outward += [
                # What conntrack does not know leaves with the container's own address.
                (_match({"ct": {"key": "state"}}, "invalid", op="in"), _DROP),
                (_is("oifname", BRIDGES, op="!="), _ACCEPT),
                (known, _ACCEPT),
                (_PUBLISHED, _ACCEPT),
            ]
        inward.append((_DROP,))
        outward.append((_DROP,))
        return [
            *self._chain("inward", *inward),
            *self._chain("outward", *outward),
            *self._chain(
                "passing",
                (there, {"jump": {"target": "inward"}}),
                (here, {"jump": {"target": "outward"}}),
                type="filter",
                hook="forward",
                prio=0,
            ),
        ]

    def _leaving(self) -> list[Json]:
        there, elsewhere = _is("oifname", self.bridge), _is("oifname", self.bridge, op="!=")
        rules: list[Sequence[object]] = [
            (there, _field("ip", "saddr", _prefix("127.0.0.0/8")), _MASQUERADE)
        ]
        for subnet in self.network.subnets:
            family = _family(subnet)
            ours = _field(family, "saddr", _prefix(subnet))
            rules += [
                # To a container of this network by the host's port: the answer would go straight.
                (there, ours, _PUBLISHED, _MASQUERADE),
                (
                    there,
                    _field(family, "daddr", f"@masked{'6' if family == 'ip6' else '4'}"),
                    _PUBLISHED,
                    _MASQUERADE,
                ),
            ]
            if self.network.internal:
                # Its containers have no way to answer anybody else. What goes from one of them to
                # another comes by here too where br_netfilter is at work.
                theirs = _field(family, "saddr", _prefix(subnet), op="!=")
                rules.append((there, theirs, _MASQUERADE))
                continue
            everyone = _prefix("ff00::/8" if family == "ip6" else "224.0.0.0/4")
            rules += [
                (ours, _is("oifname", BRIDGES), _ACCEPT),
                (ours, elsewhere, _field(family, "daddr", everyone, op="!="), _MASQUERADE),
            ]
        return self._chain("leaving", *rules, type="nat", hook="postrouting", prio=100)


def elements_of(forwarded: Mapping[str, Sequence[Forwarded]]) -> frozenset[Element]:
    """Return the elements of maps and sets that published ports are."""
    found: set[Element] = set()
    for port in (port for ports in forwarded.values() for port in ports):
        digit = "6" if _family(port.address) == "ip6" else "4"
        key: Key = (port.protocol.value, port.host_port)
        scope = "any"
        if port.host_address:
            scope, key = "one", (port.host_address, *key)
        found.add((f"{scope}{digit}_address", key, port.address))
        found.add((f"{scope}{digit}_port", key, port.container_port))
        if not port.keep_source:
            found.add((f"masked{digit}", (port.address,), None))
    return frozenset(found)


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"


def _prefix(cidr: str) -> Json:
    network = ipaddress.ip_network(cidr, strict=False)
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


def _match(left: object, right: object, op: str = "==") -> Json:
    return {"match": {"op": op, "left": left, "right": right}}


def _is(key: str, right: object, op: str = "==") -> Json:
    return _match({"meta": {"key": key}}, right, op)


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _field(protocol: str, field: str, right: object, op: str = "==") -> Json:
    return _match(_payload(protocol, field), right, op)


_META_PROTOCOL: Json = {"meta": {"key": "l4proto"}}
_PUBLISHED = _match({"ct": {"key": "status"}}, "dnat", op="in")
_ACCEPT: Json = {"accept": None}
_DROP: Json = {"drop": None}
_MASQUERADE: Json = {"masquerade": None}
