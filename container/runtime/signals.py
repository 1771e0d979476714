"""Signals by name or number, as a user writes them."""

from __future__ import annotations

from container.contracts.signals import signal_number
from container.ipc import InvalidArgument


def parse_signal(text: str) -> int:
    """Return the number of `SIGTERM`, `term`, `15` or `RTMIN+3`.

    Raises:
        InvalidArgument: no such signal.
    """
    number = signal_number(text)
    if number is None:
        raise InvalidArgument(
            f"{text!r} is no signal",
            hint="use a name such as TERM or KILL, or a number from 1 to 64",
        )
    return number
