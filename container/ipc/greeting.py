"""The first frames of a connection: each side's hello, judged before anything else is heard.

A side that accepts judges the peer's hello before it says its own, so that a stranger learns
nothing but that it is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from container.ipc.errors import Fate, Incompatible, PeerGone
from container.ipc.judging import Judge
from container.ipc.transport import Transport
from container.ipc.wire.events import HelloReceived
from container.ipc.wire.frames import EndedBy
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import Machine
from container.ipc.wire_errors import process_name, to_wire
from container.ipc.writing import Writer


class Greeting:
    """Exchange the hellos of one connection.

    Args:
        machine: The connection's.
        writer: Where our hello, or the refusal of the peer's, goes.
        judge: Of the senders.
        transport: Told to take descriptors once the peer's hello was admitted.
        limits: Of the connection.
        offered: Contracts: served (accepting side) or asked for.
        accepts: This side judges first.
        lose: Ends the connection.
    """

    def __init__(
        self,
        machine: Machine,
        writer: Writer,
        judge: Judge,
        transport: Transport,
        limits: Limits,
        offered: Mapping[str, tuple[int, str]],
        accepts: bool,
        lose: Callable[[str], None],
    ) -> None:
        self._machine = machine
        self._writer = writer
        self._judge = judge
        self._transport = transport
        self._offered = offered
        self._accepts = accepts
        self._lose = lose
        self._seconds = limits.hello_seconds if accepts else limits.launch_seconds
        self._refusal: Exception | None = None
        self._over = False
        self._heard: trio.Event | None = None

    def is_over(self) -> bool:
        """Was the peer's hello admitted, or will it not be?"""
        return self._over

    def end(self) -> None:
        """It is over, however it ended."""
        self._over = True
        if self._heard is not None:
            self._heard.set()

    async def wait(self) -> None:
        """Wait until it is over; somebody else reads."""
        if not self._over:
            self._heard = trio.Event()
            await self._heard.wait()

    def say(self) -> None:
        """Send this side's hello."""
        from container import __version__

        hello = self._machine.hello(dict(self._offered), process_name(), __version__)
        self._writer.send_control(hello)

    def take(self, event: HelloReceived) -> None:
        """Judge the peer's hello; one that is not admitted ends the connection."""
        if not event.compatible:
            theirs = event.payload
            error = Incompatible(
                f"{process_name()} speaks protocol version 1, "
                f"{theirs.process or 'the peer'} speaks {theirs.lowest} to {theirs.highest}",
                hint="use the same version of container at both ends",
            )
        elif not self._judge.admits(event.sender, None):
            error = self._judge.stranger(event.sender, "hello")
        else:
            self._transport.admit_descriptors()
            self.end()
            return
        if self._accepts:
            wire = to_wire(error, "hello")
            self._writer.send_control(self._machine.error(0, EndedBy.ITSELF, wire))
        else:
            self._refusal = error
        self._lose(f"refused: {error.message}")

    def refused(self, error: Exception) -> None:
        """The peer ends the connection with an error; `exchange` raises it."""
        self._refusal = error

    async def exchange(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait until the peer's hello was admitted, or the connection has ended.

        Args:
            wait: Returns when it is over.

        Raises:
            PeerGone: no hello came in time.
            PermissionDenied, Incompatible: one side refused the other.
        """
        if not self._accepts:
            self.say()
        with trio.move_on_after(self._seconds) as scope:
            await wait()
        if scope.cancelled_caught:
            self._lose("unresponsive")
            raise PeerGone(
                f"no hello within {self._seconds:.0f} s", fate=Fate.REFUSED, why="unresponsive"
            )
        if self._refusal is not None:
            raise self._refusal
