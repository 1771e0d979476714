"""Our seccomp profile beside podman's: every difference has a name and a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from container.runtime.bundle import CAPABILITIES
from container.runtime.seccomp import seccomp_profile

PODMAN = Path("/usr/share/containers/seccomp.json")

MORE: dict[str, str] = {
    "cachestat": "like mincore, newer than the profile",
    "fchmodat2": "fchmodat with flags, newer than the profile",
    "futex_requeue": "futexes, newer than the profile",
    "futex_wait": "futexes, newer than the profile",
    "futex_waitv": "futexes, newer than the profile",
    "futex_wake": "futexes, newer than the profile",
    "getxattrat": "extended attributes, newer than the profile",
    "listxattrat": "extended attributes, newer than the profile",
    "map_shadow_stack": "for the C library's own protection, newer than the profile",
    "mseal": "only takes rights away, newer than the profile",
    "removexattrat": "extended attributes, newer than the profile",
    "set_mempolicy_home_node": "beside set_mempolicy, newer than the profile",
    "setxattrat": "extended attributes, newer than the profile",
}
"""Allowed by us, not by podman."""

LESS: dict[str, str] = {
    "keyctl": "key rings are not kept apart by any namespace of a container",
    "syslog": "shows the machine's kernel log",
}
"""Allowed by podman, not by us."""

FOREIGN = {
    *("arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls"),
    "sync_file_range2",
}
"""Of other architectures: podman lists them apart, and here they are no system calls."""


def allowed(rules: list[dict[str, Any]]) -> set[str]:
    return {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


def applies(rule: dict[str, Any]) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    return (
        set(includes.get("caps", [])) <= set(CAPABILITIES)
        and not set(excludes.get("caps", [])) & set(CAPABILITIES)
        and ("arches" not in includes or "amd64" in includes["arches"])
    )


def ours() -> list[dict[str, Any]]:
    profile = seccomp_profile("x86_64")
    assert profile is not None
    return profile["syscalls"]


@pytest.mark.skipif(not PODMAN.exists(), reason="podman's profile is not installed")
def test_every_difference_from_podmans_profile_is_named() -> None:
    podman = json.loads(PODMAN.read_text())
    theirs = allowed([rule for rule in podman["syscalls"] if applies(rule)])
    mine = allowed(ours()) - FOREIGN
    assert mine - theirs == set(MORE)
    assert theirs - mine == set(LESS)


@pytest.mark.skipif(not PODMAN.exists(), reason="podman's profile is not installed")
def test_calls_allowed_in_part_have_podmans_conditions() -> None:
    podman = json.loads(PODMAN.read_text())

    def conditions(rules: list[dict[str, Any]], name: str) -> set[tuple[Any, ...]]:
        return {
            (rule["action"], *((a["index"], a["value"], a["op"]) for a in rule.get("args") or ()))
            for rule in rules
            if name in rule["names"]
        }

    theirs = [rule for rule in podman["syscalls"] if applies(rule)]
    for name in ("personality", "socket"):
        assert conditions(ours(), name) == conditions(theirs, name)


def test_no_call_is_in_two_groups() -> None:
    plain = [name for rule in ours() if not rule.get("args") for name in rule["names"]]
    assert len(plain) == len(set(plain))


def test_dangerous_calls_are_refused() -> None:
    refused = {
        *("bpf", "kexec_load", "init_module", "finit_module", "open_by_handle_at", "swapon"),
        *("perf_event_open", "userfaultfd", "add_key", "keyctl", "clock_settime", "iopl"),
    }
    assert not refused & allowed(ours())
    assert "io_uring_setup" not in allowed(ours())
