"""A helper that was killed comes back and takes its container up again.

Three things tell its successor what there is: the documents of the run (`records`), what was kept
for it by name (`keeping`), and the kernel. What the documents say was begun and not finished is
undone; what they say is there is taken up, with its output, its terminal and how it ended, if it
has ended meanwhile.
"""

from __future__ import annotations

import logging
from pathlib import Path

import trio
from attrs import define

from container.contracts.runtime import (
    INIT,
    ProcessState,
    SandboxPhase,
    SandboxSpec,
)
from container.ipc import Fd
from container.runtime.keeping import Keeper
from container.runtime.log import LogWriter
from container.runtime.machinery import Machinery
from container.runtime.making import has_begun
from container.runtime.oci import OciRuntime
from container.runtime.processes import ManagedProcess
from container.runtime.records import Found, ProcessRecord, Records, Step
from container.runtime.stdio import Plumbing

_log = logging.getLogger(__name__)


@define
class TakenUp:
    """A run as the successor goes on with it."""

    spec: SandboxSpec
    runtime: OciRuntime
    log: LogWriter | None
    phase: SandboxPhase
    processes: dict[str, ManagedProcess]
    ending: bool
    """Whether its end had begun: it is to be brought to its end."""


async def take_up(
    found: Found,
    folder: Path,
    machinery: Machinery,
    records: Records,
    keeper: Keeper,
    kept: dict[str, Fd],
) -> TakenUp:
    """Take up a run that another helper has made.

    Args:
        found: What is written of it; its first process was made.
        folder: The container's.
        machinery: What is worked with.
        records: Where it is written on.
        keeper: Who keeps descriptors from now on.
        kept: What was kept, by name; what is used is taken out.

    Raises:
        Unsupported: the container's OCI runtime is not installed any more.
    """
    spec = found.run.spec
    runtime = machinery.runtime(spec.runtime)
    log = await trio.to_thread.run_sync(LogWriter, folder / "log") if spec.keep_log else None
    processes: dict[str, ManagedProcess] = {}
    unfinished = [record for record in found.processes if record.step is Step.MAKING]
    for record in found.processes:
        if record.step is not Step.MAKING:
            label = found.run.label(record.number)
            processes[record.id] = _process(record, runtime, log, records, keeper, kept, label)
    if unfinished:
        await runtime.settle(spec.id)
        roots = [p.handle.pid for p in processes.values() if p.handle is not None]
        await trio.to_thread.run_sync(machinery.cgroup.kill_strays, roots)
        for record in unfinished:
            await trio.to_thread.run_sync(records.remove, record.number)
    first = processes[INIT]
    phase = await _phase(first, runtime, machinery)
    for process in processes.values():
        if process.state is not ProcessState.EXITED:
            process.keep()
    return TakenUp(spec, runtime, log, phase, processes, found.run.ending)


def _process(
    record: ProcessRecord,
    runtime: OciRuntime,
    log: LogWriter | None,
    records: Records,
    keeper: Keeper,
    kept: dict[str, Fd],
    label: str,
) -> ManagedProcess:
    prefix = f"{label}."
    mine = {
        name.removeprefix(prefix): kept.pop(name) for name in tuple(kept) if name.startswith(prefix)
    }
    if record.step is Step.ENDED:
        plumbing, handle = Plumbing(None), None
    else:
        pidfd = mine.pop("process", None)
        handle = runtime.find(
            record.pid, record.start_time, pidfd.take() if pidfd else None, keeper.orphan
        )
        plumbing = Plumbing.resume(
            record.spec, log if record.id == INIT else None, mine, record.outputs, record.pid
        )
    for name, unused in mine.items():
        unused.close()
        keeper.drop(prefix + name)
    return ManagedProcess.found(label, record, plumbing, records, keeper, handle)


async def _phase(first: ManagedProcess, runtime: OciRuntime, machinery: Machinery) -> SandboxPhase:
    if first.state is ProcessState.EXITED:
        return SandboxPhase.STOPPED
    assert first.handle is not None
    if first.state is ProcessState.CREATED:
        # Nothing tells whether it was told to run.
        if not await has_begun(runtime, first.handle):
            return SandboxPhase.CREATED
        first.has_begun()
        await first.note(Step.STARTED)
    if await trio.to_thread.run_sync(machinery.cgroup.frozen):
        return SandboxPhase.PAUSED
    return SandboxPhase.RUNNING
