"""The sending side of systemd's protocol: how a service says how it is.

To the launcher, or to systemd, whoever started it; to nobody, if `NOTIFY_SOCKET` is not set, and
then all this does nothing. The variables are taken out of the environment: what the service itself
starts (an OCI runtime, for one, which would hand them on to the container) is not meant by them.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import array
import math
import os
import socket
from collections.abc import Mapping, Sequence

import trio
from attrs import frozen

TRIES = 100
"""Of a datagram for which there is no room, one each `PAUSE`."""
PAUSE = 0.02


@frozen
class Notifier:
    """Where to say it, and how often."""

    address: str | None = None
    """A path, or an abstract name after `@`; None says nothing."""
    watchdog: float = math.inf
    """Seconds within which `WATCHDOG=1` must be said."""

    @classmethod
    def from_environment(cls) -> Notifier:
        """Return what the environment says, and take it out of there."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        interval = os.environ.pop("WATCHDOG_USEC", "")
        pid = os.environ.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return cls()
        watchdog = math.inf
        if interval.isascii() and interval.isdigit() and pid in ("", str(os.getpid())):
            watchdog = int(interval) / 1e6 or math.inf
        return cls(address, watchdog)

    async def say(self, fields: Mapping[str, str], descriptors: Sequence[int] = ()) -> bool:
        """Send one datagram; return whether it was taken.

        A listener whose queue is full is tried again for 2 s; one that is gone is none.

        Args:
            fields: `{"READY": "1"}`, say; a line break in a value becomes a space.
            descriptors: Passed along; they stay open here.
        """
        await trio.lowlevel.checkpoint()
        if self.address is None:
            return False
        to = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        text = "\n".join(f"{name}={value}".replace("\n", " ") for name, value in fields.items())
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            for _ in range(TRIES):
                try:
                    sock.sendmsg([text.encode()], rights if descriptors else (), 0, to)
                except BlockingIOError:
                    # Nothing can be waited on: a datagram socket that is not connected is always
                    # writable, and a connected one would speak to the launcher before this one.
                    await trio.sleep(PAUSE)
                    continue
                except OSError:
                    return False
                return True
        return False

    async def keep_alive(self) -> None:
        """Say that this event loop runs, three times as often as is due, until cancelled."""
        if self.address is None or self.watchdog == math.inf:
            return
        while True:
            await self.say({"WATCHDOG": "1"})
            await trio.sleep(self.watchdog / 3)
