"""The CLI's own terminal: its size, raw mode, and the keys that detach from a container."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from container.contracts.runtime import TerminalSize

DETACH = b"\x10\x11"
"""Ctrl-P Ctrl-Q."""


def is_terminal(fd: int) -> bool:
    """Return whether a descriptor is open and a terminal."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def terminal_size(*fds: int) -> TerminalSize | None:
    """Return the size of the first of the descriptors that is a terminal and knows its size."""
    from container.contracts.runtime import TerminalSize

    for fd in fds:
        try:
            width, height = os.get_terminal_size(fd)
        except OSError:
            continue
        if width > 0 and height > 0:
            return TerminalSize(width=width, height=height)
    return None


class RawTerminal:
    """A terminal whose keys all go to the container, Ctrl-C too, while a block lasts."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @contextmanager
    def hold(self) -> Generator[None]:
        """Make the terminal raw; it is as before when the block ends, however it ends."""
        saved = termios.tcgetattr(self._fd)
        try:
            self.again()
            yield
        finally:
            # TCSANOW: a terminal whose output is stopped would hold up a drain for ever.
            try:
                termios.tcsetattr(self._fd, termios.TCSANOW, saved)
            except termios.error:
                pass  # the terminal itself is gone

    def again(self) -> None:
        """Make it raw once more, after the shell had it (Ctrl-Z, fg)."""
        try:
            tty.setraw(self._fd, termios.TCSANOW)
        except termios.error:
            pass


class DetachKeys:
    """Finds the detach keys in what is typed. The first of them is held back until the next key."""

    def __init__(self, keys: bytes = DETACH) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """Return what goes on to the container, and whether the keys were typed."""
        kept = bytearray()
        for byte in typed:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    self._matched = 0
                    return bytes(kept), True
                continue
            kept += self._keys[: self._matched]
            self._matched = 1 if byte == self._keys[0] else 0
            if not self._matched:
                kept.append(byte)
        return bytes(kept), False
