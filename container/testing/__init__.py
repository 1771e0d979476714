"""The whole system in one process, for tests: ours and those of users.

`system()` opens every service in the caller's own event loop, with an OCI runtime that is played
instead of run: a test takes milliseconds, needs no root, and works under Trio's autojump clock. The
pytest plugin offers it as the fixture `container_system`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from container.testing.clock import hold_autojump_clock as hold_autojump_clock
    from container.testing.in_process import System as System
    from container.testing.in_process import system as system
    from container.testing.launcher import InProcessLauncher as InProcessLauncher

_LAZY = {
    "InProcessLauncher": "container.testing.launcher",
    "System": "container.testing.in_process",
    "hold_autojump_clock": "container.testing.clock",
    "system": "container.testing.in_process",
}


def __getattr__(name: str) -> object:
    # Late, since pytest imports this package in every run that has `container` installed.
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'container.testing' has no attribute {name!r}")
