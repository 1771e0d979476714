"""Signal names as users write them: `SIGTERM`, `TERM`, `term`, `15`, `RTMIN+3`."""

from __future__ import annotations

import re
import signal

from container.ipc import InvalidArgument

_REALTIME = re.compile(r"(?:SIG)?RT(MIN\+|MAX-)(\d+)")


def signal_name(given: str) -> str:
    """Return the canonical name of a signal: `SIGTERM`, `SIGRTMIN+3`.

    Raises:
        InvalidArgument: there is no such signal.
    """
    text = given.strip().upper()
    span = int(signal.SIGRTMAX) - int(signal.SIGRTMIN)
    if match := _REALTIME.fullmatch(text):
        if int(match[2]) <= span:
            return f"SIGRT{match[1]}{int(match[2])}"
    elif text.isascii() and text.isdigit():
        number = int(text)
        if signal.SIGRTMIN < number < signal.SIGRTMAX:
            return f"SIGRTMIN+{number - int(signal.SIGRTMIN)}"
        if number in {int(known) for known in signal.Signals}:
            return signal.Signals(number).name
    else:
        name = text if text.startswith("SIG") else f"SIG{text}"
        if name in signal.Signals.__members__:
            return signal.Signals[name].name
    raise InvalidArgument(f"no signal {given!r}", hint="use a name as TERM or KILL, or a number")
