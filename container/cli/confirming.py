"""Ask before something is deleted that can't be brought back."""

from __future__ import annotations

import sys

from container.cli.failure import Ended, Refused


def confirm(what: str, *, force: bool) -> None:
    """Go on if the person says yes, or has said so with `--force`.

    Raises:
        Refused: nobody can be asked.
        Ended: the answer is no.
    """
    if force:
        return
    if not sys.stdin.isatty():
        raise Refused("nobody is there to be asked", hint="--force does it without asking")
    print(f"{what}\nGo on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Ended(1)
