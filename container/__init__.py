"""Linux containers run by small cooperating Trio processes.

`container.ipc` is the framework; the container system is built on nothing but it. This module
imports lazily: `import container.ipc` loads nothing of the container system, and `container --help`
loads no framework.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # not typing's: the command line's start would pay for that import

if TYPE_CHECKING:
    from container.embed import Container as Container
    from container.embed import System as System
    from container.embed import connect_system as connect_system
    from container.embed import open_system as open_system

_LAZY = {"open_system", "connect_system", "System", "Container"}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module("container.embed"), name)
    raise AttributeError(f"module 'container' has no attribute {name!r}")
