"""Signals as users write them: `SIGTERM`, `TERM`, `term`, `15`, `RTMIN+3`. One grammar for all."""

from __future__ import annotations

import re
import signal

_REALTIME = re.compile(r"RT(MIN\+|MAX-)([0-9]+)")


def signal_number(text: str) -> int | None:
    """Return a signal's number, 1 to 64; None if there is no such signal."""
    word = _word(text)
    first, last = int(signal.SIGRTMIN), int(signal.SIGRTMAX)
    if word.isascii() and word.isdigit():
        number = int(word)
        return number if 1 <= number <= last else None
    if match := _REALTIME.fullmatch(word):
        distance = int(match[2])
        number = first + distance if match[1] == "MIN+" else last - distance
        return number if first <= number <= last else None
    known = signal.Signals.__members__.get(f"SIG{word}")
    return None if known is None else int(known)


def signal_name(text: str) -> str | None:
    """Return a signal's canonical name: `SIGTERM`, `SIGRTMIN+3`; None if there is no such signal.

    The numbers between the named and the real-time signals, which the C library keeps to itself,
    have no name.
    """
    number = signal_number(text)
    if number is None:
        return None
    if match := _REALTIME.fullmatch(_word(text)):
        return f"SIGRT{match[1]}{int(match[2])}"
    if number in {int(known) for known in signal.Signals}:
        return signal.Signals(number).name
    if signal.SIGRTMIN < number < signal.SIGRTMAX:
        return f"SIGRTMIN+{number - int(signal.SIGRTMIN)}"
    return None


def _word(text: str) -> str:
    return text.strip().upper().removeprefix("SIG")
