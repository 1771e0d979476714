"""Signal names in what callers ask of containers."""

from __future__ import annotations

from container.contracts import signals
from container.ipc import InvalidArgument


def signal_name(given: str) -> str:
    """Return the canonical name of a signal: `SIGTERM`, `SIGRTMIN+3`.

    Raises:
        InvalidArgument: there is no such signal.
    """
    name = signals.signal_name(given)
    if name is None:
        raise InvalidArgument(
            f"no signal {given!r}", hint="use a name as TERM or KILL, or a number"
        )
    return name
