"""Signals by name or number, as a user writes them."""

from __future__ import annotations

import signal

from container.ipc import InvalidArgument


def parse_signal(text: str) -> int:
    """Return the number of `SIGTERM`, `term`, `15` or `RTMIN+3`.

    Raises:
        InvalidArgument: no such signal.
    """
    word = text.strip().upper().removeprefix("SIG")
    if word.isascii() and word.isdigit():
        number = int(word)
        if 1 <= number <= signal.SIGRTMAX:
            return number
    elif word.startswith(("RTMIN+", "RTMAX-")) and word[6:].isascii() and word[6:].isdigit():
        distance = int(word[6:])
        first, last = int(signal.SIGRTMIN), int(signal.SIGRTMAX)
        number = first + distance if word.startswith("RTMIN") else last - distance
        if first <= number <= last:
            return number
    elif f"SIG{word}" in signal.Signals.__members__:
        return int(signal.Signals[f"SIG{word}"])
    raise InvalidArgument(
        f"{text!r} is no signal", hint="use a name such as TERM or KILL, or a number from 1 to 64"
    )
