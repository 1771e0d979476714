"""Refuse connections: accept and close them, so that callers get an answer and not a wait.

Also when no descriptor is left to accept them with, which is when services can't be started: one is
held in reserve for that.
"""

from __future__ import annotations

import contextlib
import os
import socket
from types import TracebackType
from typing import Self


class Refusal:
    """Refuses connections; in its block it holds a descriptor in reserve."""

    def __init__(self) -> None:
        self._reserve = -1
        self._open = False

    def __enter__(self) -> Self:
        self._open = True
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        self._give()

    def refuse(self, listener: socket.socket) -> bool:
        """Refuse the connection that waits; False if it can't even be accepted."""
        self._give()
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return True  # it is gone already
        except OSError:
            return False  # a thread was faster
        finally:
            self._take()
        return True

    def _give(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            if self._open:
                self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
