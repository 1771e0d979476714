"""`audit`: look at a system, and look again before anything is called wrong.

A look takes a moment, and a system that runs goes on meanwhile: a container that is being made or
removed is half there in every single look. So what is found is looked at again until it is gone or
`settle` seconds have passed; a finding is what was there in every look.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import trio
import trio.from_thread

from container.audit.containers import check_containers, check_processes, read_containers
from container.audit.finding import Finding, Report
from container.audit.images import check_digests, check_images
from container.audit.machine import Machine, look
from container.audit.networks import check_networks
from container.audit.services import Word, ask
from container.audit.volumes import check_volumes, read_volumes
from container.storage.paths import Paths

SETTLE_SECONDS = 6.0
"""Longer than processes whose launcher was killed take to end (5 s)."""
_PAUSE = 0.25


async def audit(
    paths: Paths,
    *,
    deep: bool = False,
    also: Collection[str] = (),
    settle: float = SETTLE_SECONDS,
) -> Report:
    """Audit one system, up or down, and change nothing; no service is started.

    A system without findings costs one look. Cancellation leaves nothing.

    Args:
        paths: Which.
        deep: Read the bytes of all blobs, too.
        also: Ids of containers that are gone, whose control groups are looked for.
        settle: Seconds that something may be wrong in passing.

    Raises:
        OSError: its folders can't be read.
    """
    deadline = trio.current_time() + settle
    report, found = await _look(paths, also)
    left = {finding.key: finding for finding in found}
    while left and trio.current_time() < deadline:
        await trio.sleep(_PAUSE)  # there is no one thing to wait for: anything may be in the making
        report, found = await _look(paths, also)
        again = {finding.key: finding for finding in found}
        left = {key: again[key] for key in left if key in again}
    findings = list(left.values())
    if deep:
        findings += await trio.to_thread.run_sync(_deep, paths)
    return Report(report.running, tuple(findings), report.looked_at, deep)


async def _look(paths: Paths, also: Collection[str]) -> tuple[Report, list[Finding]]:
    machine = await trio.to_thread.run_sync(look, paths)
    word = await ask(paths) if machine.launcher_lock else Word()
    return await trio.to_thread.run_sync(partial(_compare, paths, word, also))


def _compare(paths: Paths, word: Word, also: Collection[str]) -> tuple[Report, list[Finding]]:
    # Documents after the services' word, and the kernel after the documents: what is made meanwhile
    # is then there rather than missing.
    containers = read_containers(paths, running=word.status is not None)
    machine = look(paths)
    volumes = read_volumes(paths)
    images, found = check_images(paths, containers, machine, word)
    findings = [
        *word.findings,
        *containers.findings,
        *check_containers(paths, containers, machine, word, also),
        *check_processes(containers, machine, word),
        *found,
        *volumes.findings,
        *check_volumes(paths, volumes, containers, machine),
        *check_networks(paths, containers.ids, others=machine.others),
    ]
    looked_at = _counts(machine) | {
        "containers": len(containers.ids),
        "volumes": len(volumes.names),
        "images": len(images.references),
        "blobs": len(images.digests()),
        "snapshots": len(images.snapshots),
        "holds": sum(map(len, images.holds.values())),
    }
    return Report(machine.launcher_lock, (), looked_at), findings


def _counts(machine: Machine) -> dict[str, int]:
    return {
        "processes": len(machine.processes),
        "mounts": len(machine.mounts),
        "sockets": len(machine.listening),
    }


def _deep(paths: Paths) -> list[Finding]:
    from container.audit.images import Images

    return list(check_digests(Images(paths), trio.from_thread.check_cancelled))
