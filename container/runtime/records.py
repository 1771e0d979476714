"""What is written of a run, so that the next helper can go on where this one was killed.

One small document for the run, written before anything is made for it, and one for each of its
processes. A document says what is about to be done before it is done, and what is there afterwards:

| document | says | a helper that finds it |
|---|---|---|
| the run's alone | something may have been made | undoes it |
| process, MAKING | the OCI runtime may have made it | ends it: nobody was told of it |
| process, MADE | it is there | takes it up |
| process, STARTED | it was told to run | takes it up |
| process, ENDED | how it ended | tells that |
| the networks' | what it is attached to | attaches it again; leaves what was joined or left half |

Nothing here is synced: no run outlives a power loss, and documents of another boot are void. They
stay when a run has ended, for whoever has not asked yet how, until `shutdown` or the next run.
"""

from __future__ import annotations

import enum
import functools
import logging
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any, get_args, get_type_hints

import attrs
import cattrs
from attrs import evolve, field, frozen
from cattrs.preconf.json import JsonConverter, make_converter

from container.contracts.network import Attachment
from container.contracts.runtime import INIT, ExitStatus, ProcessSpec, SandboxNetwork, SandboxSpec

RUN_NAME = "run.json"
NETWORKS_NAME = "networks.json"
_log = logging.getLogger(__name__)


class Step(enum.Enum):
    """How far a process has come."""

    MAKING = "making"
    MADE = "made"
    STARTED = "started"
    ENDED = "ended"


@frozen
class RunRecord:
    """What a run is, and whether its end has begun."""

    spec: SandboxSpec
    boot: str
    """The machine's boot, by the kernel's own id."""
    run: str
    """No other run has it: what is kept of another one is not taken for ours."""
    ending: bool = False

    @classmethod
    def new(cls, spec: SandboxSpec) -> RunRecord:
        """Return a run that begins now."""
        return cls(spec, boot_id(), os.urandom(6).hex())

    def label(self, number: int) -> str:
        """Return what names one of its processes, and begins the name of all that is kept of it."""
        return f"{self.run}.{number}"


@frozen
class ProcessRecord:
    """One process of a run."""

    number: int
    """0 for the first; names its document."""
    id: str
    step: Step
    spec: ProcessSpec
    pid: int = 0
    start_time: int = 0
    """In clock ticks since boot: with the pid it names one process until the next boot."""
    started_at: datetime | None = None
    exit: ExitStatus | None = None
    outputs: dict[int, int] = field(factory=dict[int, int])
    """Descriptor of the process (1, 2) to the inode of the log's pipe that it is."""


@frozen
class NetworksRecord:
    """What a run's container is attached to."""

    networks: tuple[SandboxNetwork, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    """As they were granted last."""
    unfinished: tuple[SandboxNetwork, ...] = ()
    """To be left: what was joined or left, and not to its end."""
    shared: bool = False
    """Whether the network namespace was handed out."""


@frozen
class Found:
    """What is on disk of a run."""

    run: RunRecord
    processes: tuple[ProcessRecord, ...]
    """By number."""
    networks: NetworksRecord | None = None
    """None of one that was not attached."""

    @property
    def first(self) -> ProcessRecord | None:
        """The first process, if it was made."""
        return next((process for process in self.processes if process.id == INIT), None)


@frozen
class Records:
    """The documents of a container's run. All methods block; a document that is there is complete.

    Args:
        folder: Of their own.
    """

    folder: Path

    def begin(self, run: RunRecord) -> None:
        """Forget the last run, and write that this one begins."""
        self.clear()
        self.folder.mkdir(mode=0o700, parents=True)
        self.write_run(run)

    def write_run(self, run: RunRecord) -> None:
        """Write a run's document."""
        self._write(RUN_NAME, _CONVERTER.dumps(run))

    def note_ending(self, run: RunRecord) -> None:
        """Write that a run is being brought to its end; a disk that is full stops that not."""
        try:
            self.write_run(evolve(run, ending=True))
        except OSError as error:
            _log.warning("that container %s ends can't be written down: %s", run.spec.id, error)

    def write(self, process: ProcessRecord) -> None:
        """Write a process's document."""
        self._write(f"process-{process.number}.json", _CONVERTER.dumps(process))

    def write_networks(self, networks: NetworksRecord) -> None:
        """Write what the container is attached to."""
        self._write(NETWORKS_NAME, _CONVERTER.dumps(networks))

    def remove(self, number: int) -> None:
        """Forget a process; none is no error."""
        (self.folder / f"process-{number}.json").unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all; nothing is no error."""
        if self.folder.is_dir():
            # This one first: without it the others are of no run.
            (self.folder / RUN_NAME).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def read(self) -> Found | None:
        """Return what is there of a run of this boot; None if nothing can be read."""
        try:
            run = _CONVERTER.loads((self.folder / RUN_NAME).read_text(), RunRecord)
            files = sorted(self.folder.glob("process-*.json"))
            processes = [_CONVERTER.loads(file.read_text(), ProcessRecord) for file in files]
            networks = self._read_networks()
        except (OSError, ValueError, KeyError, cattrs.BaseValidationError):
            return None  # of another version: as good as none, and swept with the rest
        if run.boot != boot_id():
            return None
        return Found(run, tuple(sorted(processes, key=lambda process: process.number)), networks)

    def _read_networks(self) -> NetworksRecord | None:
        try:
            text = (self.folder / NETWORKS_NAME).read_text()
        except FileNotFoundError:
            return None
        return _CONVERTER.loads(text, NetworksRecord)

    def _write(self, name: str, text: str) -> None:
        temporary = self.folder / f".{name}"
        temporary.write_text(text)
        temporary.replace(self.folder / name)


@functools.cache
def boot_id() -> str:
    """Return the id of this boot. Source: random(4)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_time(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; 0 if there is none.

    Source: proc(5).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text[text.rindex(")") + 2 :].split()[19])


def _prepared() -> JsonConverter:
    """Return a converter whose code has been generated: once, before any helper is forked."""
    converter = make_converter()
    classes = _classes(RunRecord, ProcessRecord, NetworksRecord)
    # Twice: with each hook for a sequence that cattrs makes it forgets those for classes.
    for record in (*classes, *classes):
        converter.get_structure_hook(record)
        converter.get_unstructure_hook(record)
    return converter


def _classes(*types: Any) -> set[type[Any]]:
    """Return all classes with fields that values of these types may hold."""
    found: set[type[Any]] = set()
    waiting = list(types)
    while waiting:
        one = waiting.pop()
        if not attrs.has(one):
            waiting += get_args(one)
        elif one not in found:
            found.add(one)
            waiting += get_type_hints(one).values()
    return found


_CONVERTER = _prepared()
