"""Faults: kill or freeze a process, fill the disk or take its descriptors, at one of its steps.

`Gate` listens to the steps of a system's processes (`fault_steps`). Open without a plan it records
them; with one it injects the fault at the step that the plan names: the process stands still there,
so the fault comes exactly between what was done and what was not.

```python
with Gate(socket_path) as gate:
    gate.arm(None)
    ...                                        # the operation, once
    steps = gate.disarm()
    gate.arm(Plan(steps[3], Fault.KILL, root))
    ...                                        # the same again
    gate.disarm()
```
"""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import os
import resource
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import define, field, frozen

FREEZE_SECONDS = 1.0
_FILLER = "filler"
_PIECE = 1 << 20


class Fault(enum.Enum):
    """What happens to a process."""

    KILL = "kill"
    """SIGKILL."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT after `FREEZE_SECONDS`."""
    FULL = "full"
    """The disk of the system's root has no byte left, until the operation is over."""
    DESCRIPTORS = "descriptors"
    """It may open no further descriptor, until the operation is over."""


@frozen(order=True)
class Step:
    """One step of one process of an operation."""

    process: str
    """`launcher`, `apiserver`, `images`, `runtime`, `zygote`."""
    step: str
    ordinal: int
    """How often the process had taken it before, in this operation."""

    def __str__(self) -> str:
        return f"{self.process} {self.step} #{self.ordinal}"


@frozen
class Plan:
    """A fault, and the step at which it comes."""

    at: Step
    fault: Fault
    root: Path
    """Of the system: its disk is filled."""


@define
class Gate:
    """Let each step of a system pass, or not.

    Args:
        path: Of the socket that the processes are told by `CONTAINER_FAULTS`.
    """

    path: Path
    injected: bool = False
    """Whether the plan's step was reached."""
    _listener: socket.socket | None = None
    _thread: threading.Thread | None = None
    _plan: Plan | None = None
    _steps: list[Step] = field(factory=list[Step])
    _counts: Counter[tuple[str, str]] = field(factory=Counter[tuple[str, str]])
    _limited: list[tuple[int, tuple[int, int]]] = field(factory=list[tuple[int, tuple[int, int]]])
    _threads: list[threading.Thread] = field(factory=list[threading.Thread])
    _lock: threading.Lock = field(factory=threading.Lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.disarm()

    def arm(self, plan: Plan | None) -> None:
        """Begin to listen; with a plan, inject its fault when its step is reached."""
        self._plan, self.injected = plan, False
        self._steps, self._counts = [], Counter()
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(256)
        self._listener = listener
        self._thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
        self._thread.start()

    def disarm(self) -> list[Step]:
        """Stop listening, take back what can be, and return the steps that were taken."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self.path.unlink(missing_ok=True)
            listener.shutdown(socket.SHUT_RDWR)
            if self._thread is not None:
                self._thread.join()
            listener.close()
            for thread in self._threads:
                thread.join()
            self._threads.clear()
        if self._plan is not None:
            (self._plan.root / _FILLER).unlink(missing_ok=True)
        for pid, limits in self._limited:
            with contextlib.suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        self._limited.clear()
        return self._steps

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            # One at a time: what is told first goes on first, so that the order is the same again.
            with contextlib.suppress(OSError, ValueError), connection:
                connection.settimeout(5)
                word = json.loads(connection.makefile("rb").readline())
                step = self._take(word["process"], word["step"])
                plan = self._plan
                if plan is not None and not self.injected and step == plan.at:
                    self.injected = True
                    self._inject(plan, word["pid"], word["free"])
                if not (self.injected and plan is not None and plan.fault is Fault.KILL):
                    connection.sendall(b"g")

    def _take(self, process: str, name: str) -> Step:
        with self._lock:
            step = Step(process, name, self._counts[process, name])
            self._counts[process, name] += 1
            self._steps.append(step)
            return step

    def _inject(self, plan: Plan, pid: int, free: int) -> None:
        match plan.fault:
            case Fault.KILL:
                os.kill(pid, signal.SIGKILL)
            case Fault.FREEZE:
                os.kill(pid, signal.SIGSTOP)
                thread = threading.Thread(target=_thaw, args=(pid,), daemon=True)
                thread.start()
                self._threads.append(thread)
            case Fault.FULL:
                fill(plan.root)
            case Fault.DESCRIPTORS:
                _, hard = limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(free, hard), hard))
                self._limited.append((pid, limits))


def _thaw(pid: int) -> None:
    time.sleep(FREEZE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def fill(folder: Path) -> None:
    """Leave no byte on the file system of a folder; it must be a small one."""
    piece = bytes(_PIECE)
    with (folder / _FILLER).open("ab", buffering=0) as file:
        while piece:
            try:
                file.write(piece)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                piece = piece[: len(piece) // 2]
