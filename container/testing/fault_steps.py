"""The steps of a system's processes, each of which a fault may be injected at.

A process that has `CONTAINER_FAULTS` in its environment, and was started with the folder that
`write_site` makes on its `PYTHONPATH`, tells whoever listens at that socket of each step before it
takes it, and waits for the word to go on: blocking, the whole process stands still. Without both,
nothing of this is loaded. Steps are

- of the wire: a call arrives (`call images/prepare`), its answer is about to leave
  (`ended images/prepare`), a scope opens or closes;
- of the disk, in the system's own folders: `rename`, `link`, `symlink`, `mkdir`, `rmdir` and
  `remove` of a name, with whatever is random in it left out;
- of the machine: a program is about to be started (`spawn runc`).

It is loaded into launcher and zygote, and forked with the latter into every service.

Source: PEP 578 (runtime audit hooks); the `site` module, `sitecustomize`.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
from pathlib import Path
from typing import Any

VARIABLE = "CONTAINER_FAULTS"
"""Path of the socket. While nobody listens there, no step is told."""
WAIT_SECONDS = 120.0
"""After which a process that nobody answers goes on."""

_RANDOM = re.compile(r"[0-9a-f]{12,}|(?<=\.json\.)\w+(?=\.writing)")
_EVENTS = {
    "os.rename": ("rename", 1),
    "os.link": ("link", 1),
    "os.symlink": ("symlink", 1),
    "os.mkdir": ("mkdir", 0),
    "os.rmdir": ("rmdir", 0),
    "os.remove": ("remove", 0),
    "subprocess.Popen": ("spawn", 0),
    "os.posix_spawn": ("spawn", 0),
}
_state = threading.local()


def write_site(folder: Path) -> None:
    """Make the folder that loads this into the processes which have it on `PYTHONPATH`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"from {__name__} import install\n\ninstall()\n"
    (folder / "sitecustomize.py").write_text(text)


def install() -> None:
    """Begin to tell steps, if this process is a launcher or zygote that is asked to."""
    path = os.environ.get(VARIABLE)
    if path is None or not any("container.launcher" in word for word in sys.orig_argv):
        return
    from container.ipc import tracing

    roots = tuple(
        os.environ[name] for name in ("CONTAINER_ROOT", "CONTAINER_RUN") if name in os.environ
    )

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        known = _EVENTS.get(event)
        if known is None or not os.path.exists(path):
            return
        word, position = known
        text = str(arguments[position])
        if word == "spawn":
            tell(path, f"spawn {os.path.basename(text)}")
        elif text.startswith(roots) or not text.startswith("/"):
            tell(path, f"{word} {os.path.basename(text)}")

    def watch(step: tracing.Step) -> None:
        if step.route and os.path.exists(path):
            tell(path, f"{step.kind} {step.route}")

    def watch_here() -> None:
        if watch not in tracing.watchers:
            tracing.watchers.append(watch)

    watch_here()
    os.register_at_fork(after_in_child=watch_here)
    sys.addaudithook(audited)


def tell(path: str, step: str) -> None:
    """Tell of a step and wait until it may be taken."""
    if getattr(_state, "telling", False):
        return
    _state.telling = True
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(WAIT_SECONDS)
            connection.connect(path)
            word = {
                "pid": os.getpid(),
                "process": _name(),
                "step": _RANDOM.sub("*", step),
                "free": connection.fileno(),  # the lowest that is free once this is closed
            }
            connection.sendall(json.dumps(word).encode() + b"\n")
            connection.recv(1)
    except OSError:
        pass  # nobody listens any more, or no descriptor is left: a fault, too
    finally:
        _state.telling = False


def _name() -> str:
    with open("/proc/self/comm", encoding="ascii", errors="replace") as file:
        return file.read().strip().partition(".")[0]
