"""Tell which of another's rules stand in the way of a network, and what to do about each.

A packet passes if *every* table lets it pass, so nothing that we write can undo another's drop, and
nothing of another's is ever changed here. Who administers the machine can let the bridge pass, each
firewall in its own way; the sentences say how. What is looked at: chains at the hooks `forward` and
(since containers ask the host for names) `input` that drop what they do not know, by policy or by
their last rule. A rule of such a table that lets the bridge through ends the complaint.

Source: libnftables-json(5), iptables-nft's and firewalld's tables as they write them, Docker's
"Packet filtering and firewalls".
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any, cast

from attrs import field, frozen

Json = dict[str, Any]

OURS = "container-"
"""What the names of all our tables start with; their family is `inet`."""
_FAMILIES = {"ip": ("ip",), "ip6": ("ip6",), "inet": ("ip", "ip6")}
_IGNORED = ("comment", "counter")
"""Parts of a rule that are no condition."""


@frozen
class _Table:
    family: str
    name: str
    chains: dict[str, Json] = field(factory=dict[str, Json])
    rules: dict[str, list[list[Json]]] = field(factory=dict[str, list[list[Json]]])
    """By chain, each as its expressions."""

    def base_chains(self, hook: str) -> Iterable[str]:
        return (
            name
            for name, chain in self.chains.items()
            if chain.get("hook") == hook and chain.get("type") == "filter"
        )

    def drops(self, chain: str) -> bool:
        """Whether a packet that no rule knows is dropped in a base chain."""
        verdict = self._verdict(chain, frozenset())
        return (verdict or self.chains[chain].get("policy")) == "drop"

    def _verdict(self, chain: str, above: frozenset[str]) -> str | None:
        """Return what is done with such a packet, or None if the chain leaves it be."""
        for rule in self.rules.get(chain, ()):
            said = [part for part in rule if not _is_ignored(part)]
            # One part is a verdict without a condition.
            if len(said) != 1:
                continue
            if "accept" in said[0] or _is_drop(said[0]):
                return "accept" if "accept" in said[0] else "drop"
            if "return" in said[0]:
                return None
            for verb in ("jump", "goto"):
                target = said[0].get(verb, {}).get("target", "")
                if target and target not in above:
                    verdict = self._verdict(target, above | {chain})
                    if verdict is not None or verb == "goto":
                        return verdict
        return None

    def lets_pass(self, bridge: str, key: str) -> bool:
        """Whether some rule lets packets of the bridge pass, or has a chain of its own for them."""
        for rule in (rule for rules in self.rules.values() for rule in rules):
            named = any(_names_interface(part, key, bridge) for part in rule)
            if named and any({"accept", "goto", "jump"} & part.keys() for part in rule):
                return True
        return False


def problems(
    ruleset: Sequence[Json],
    *,
    table: str | None,
    bridge: str,
    families: Iterable[str],
    leads_out: bool,
    answers_names: bool,
) -> tuple[str, ...]:
    """Return a sentence for each of another's chains that drops a network's packets.

    Args:
        ruleset: What `nft -j list ruleset` prints, without its frame.
        table: The network's own, if it is to be there.
        bridge: The network's.
        families: `ip`, `ip6`: what the network has.
        leads_out: Whether its packets are forwarded.
        answers_names: Whether the host answers its containers.
    """
    found: list[str] = []
    tables = _tables(ruleset)
    if table is not None and ("inet", table) not in tables:
        found.append(
            f"another program deleted the rules of the network (table inet {table}); they are "
            "written again when one of its containers starts, or its helper does"
        )
    families = tuple(families)
    for (family, name), each in tables.items():
        if family == "inet" and name.startswith(OURS):
            continue
        if not set(_FAMILIES.get(family, ())) & set(families):
            continue
        if leads_out:
            found += _of_hook(each, bridge, "forward", ("iifname", "oifname"))
        if answers_names:
            found += _of_hook(each, bridge, "input", ("iifname",))
    return tuple(found)


def legacy_problems(listing: str, bridge: str, program: str, *, hook: str) -> tuple[str, ...]:
    """Return the sentence about a chain of the old iptables, which nft does not list.

    Args:
        listing: What `iptables-legacy -S FORWARD` prints.
        bridge: The network's.
        program: Which printed it.
        hook: `forward` or `input`.
    """
    chain = hook.upper()
    lines = [line.split() for line in listing.splitlines()]
    drops = ["-P", chain, "DROP"] in lines or any(
        line[:3] == ["-A", chain, "-j"] and line[3] in ("DROP", "REJECT") for line in lines
    )
    options = ("-i", "-o") if hook == "forward" else ("-i",)
    passes = all(
        any(option in line and line[line.index(option) + 1] == bridge for line in lines)
        for option in options
    )
    if not drops or passes:
        return ()
    first = "DOCKER-USER" if any("DOCKER-USER" in line for line in lines) else chain
    return (
        _sentence(f"chain {chain} of {program}", hook, _iptables(program, first, bridge, hook)),
    )


def _of_hook(table: _Table, bridge: str, hook: str, keys: Sequence[str]) -> list[str]:
    if table.name == "firewalld":
        # A zone is that of the interface by which a packet arrives.
        keys = ("iifname",)
    dropping = [chain for chain in table.base_chains(hook) if table.drops(chain)]
    if not dropping or all(table.lets_pass(bridge, key) for key in keys):
        return []
    where = f"chain {dropping[0]} of table {table.family} {table.name}"
    return [_sentence(where, hook, _advice(table, dropping[0], bridge, hook))]


def _sentence(where: str, hook: str, advice: str) -> str:
    if hook == "forward":
        return f"{where} drops packets to and from containers: let them pass with `{advice}`"
    return f"{where} drops what containers ask the host, names too: let it pass with `{advice}`"


def _advice(table: _Table, chain: str, bridge: str, hook: str) -> str:
    if table.name == "firewalld":
        zone = f"firewall-cmd --permanent --zone=trusted --add-interface={bridge}"
        return f"{zone} && firewall-cmd --reload"
    if any(name.startswith(("ufw-", "ufw6-")) for name in table.chains):
        if hook == "input":
            return f"ufw allow in on {bridge}"
        return f"ufw route allow in on {bridge} && ufw route allow out on {bridge}"
    if table.name == "filter" and table.family in ("ip", "ip6") and chain == chain.upper():
        program = "iptables" if table.family == "ip" else "ip6tables"
        first = "DOCKER-USER" if hook == "forward" and "DOCKER-USER" in table.chains else chain
        return _iptables(program, first, bridge, hook)
    rules = [f"nft insert rule {table.family} {table.name} {chain} iifname {bridge} accept"]
    if hook == "forward":
        rules.append(rules[0].replace("iifname", "oifname"))
    return " && ".join(rules)


def _iptables(program: str, chain: str, bridge: str, hook: str) -> str:
    options = ("-i", "-o") if hook == "forward" else ("-i",)
    return " && ".join(f"{program} -I {chain} {each} {bridge} -j ACCEPT" for each in options)


def _tables(ruleset: Sequence[Json]) -> dict[tuple[str, str], _Table]:
    tables: dict[tuple[str, str], _Table] = {}
    for entry in ruleset:
        if table := entry.get("table"):
            key = (table["family"], table["name"])
            tables[key] = _Table(*key)
        elif chain := entry.get("chain"):
            tables[chain["family"], chain["table"]].chains[chain["name"]] = chain
        elif rule := entry.get("rule"):
            place = tables[rule["family"], rule["table"]].rules
            place.setdefault(rule["chain"], []).append(rule["expr"])
    return tables


def _is_ignored(part: Json) -> bool:
    match part:
        case {"xt": {"type": "match", "name": name}}:
            return name in _IGNORED
        case _:
            return any(name in part for name in _IGNORED)


def _is_drop(part: Json) -> bool:
    match part:
        case {"xt": {"type": "target", "name": name}}:
            return name in ("DROP", "REJECT")
        case _:
            return "drop" in part or "reject" in part


def _names_interface(part: Json, key: str, bridge: str) -> bool:
    match part:
        case {"match": {"op": "==", "left": {"meta": {"key": found}}, "right": right}}:
            if found != key:
                return False
            return any(fnmatch.fnmatchcase(bridge, name) for name in _interfaces(right))
        case _:
            return False


def _interfaces(right: Any) -> list[str]:
    if isinstance(right, dict):
        right = cast("Json", right).get("set", ())
    names = cast("list[object]", right if isinstance(right, list) else [right])
    return [name for name in names if isinstance(name, str)]
