"""The hold on one attachment of a container: a scope at a network's helper, opened again and again.

An attachment lasts as long as the scope. The network's helper may be killed: the session takes the
attachment up again by its key, as long as the run lasts, while packets flow on, since interface and
rules are the kernel's.

| session | on | becomes |
|---|---|---|
| opening | the attachment is granted | held |
| opening for the first time | it fails, or is cancelled | over; its caller gets the failure |
| held, opening again | the helper is lost, or refuses | opening again, after a delay |
| any | `leave` | left in order: the attachment is gone; then over |
| any | `abandon` | over; the attachment goes with the namespace |
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import trio

from container.contracts.network import Attachment, Network
from container.contracts.runtime import SandboxNetwork
from container.ipc import Backoff, Fd, PeerGone, Supervised, Unavailable, connection_of
from container.ipc.error_groups import single

ATTACH_SECONDS = 30.0
"""For a network's helper to be started and to attach a container."""
LEAVE_SECONDS = 5.0
"""For one to take an attachment down."""
BACKOFF = Backoff(first=0.02, longest=5.0, jitter=0.5)
"""All containers of a network lose its helper at once."""
TRIES = 3
"""A helper that ends because it was idle may have taken the connection: the next one answers."""

ConnectNetwork = Callable[[str], AbstractAsyncContextManager[Network]]
"""From the path of a network helper's socket to its network."""


class Session:
    """The hold on one attachment; run it in a nursery.

    Args:
        network: What to be attached to, and how.
        namespace: The container's network namespace; borrowed while it runs.
        connect: Connects to the network's helper.
        regranted: Awaited when another attachment is granted than before.
    """

    def __init__(
        self,
        network: SandboxNetwork,
        namespace: Fd,
        connect: ConnectNetwork,
        regranted: Callable[[], Awaitable[None]],
    ) -> None:
        self.network = network
        self.attachment: Attachment | None = None
        """The last that was granted: while it is opened again, the kernel goes on with that."""
        self.held = False
        """Whether a helper knows that we hold it."""
        self._helper: Network | None = None
        """Who is asked."""
        self._namespace = namespace
        self._connect = connect
        self._regranted = regranted
        self._changed = trio.Event()
        self._left = trio.Event()
        self._abandoned = False
        self._scope = trio.CancelScope()
        self._supervised = Supervised[Attachment](
            self._hold,
            name=f"the attachment to network {network.name}",
            backoff=BACKOFF,
            intensity=None,
        )

    async def run_opened(self, *, task_status: trio.TaskStatus[Supervised[Attachment]]) -> None:
        """Hold it until it is left; says `started` when it is held for the first time.

        Raises:
            ContainerError: it was not granted.
        """
        with self._scope:
            await self._supervised.announcing(task_status).run()

    async def run(self) -> None:
        """Hold it until it is left, however long the first opening takes."""
        self._scope.shield = True
        with self._scope:
            await self._supervised.run()

    async def _hold(self) -> None:
        for last in (*[False] * (TRIES - 1), True):
            try:
                await self._hold_once()
                return
            except PeerGone as error:
                if self._abandoned:
                    return
                if self.held or last:
                    # Not as it is: to our own caller it would be we who are gone.
                    raise Unavailable(
                        f"network {self.network.name} can't be reached: {error}",
                        hint="`container system status` shows what runs",
                    ) from error
            finally:
                self.held, self._helper = False, None

    async def _hold_once(self) -> None:
        opening = trio.CancelScope(deadline=trio.current_time() + ATTACH_SECONDS)
        try:
            with opening:
                async with self._connect(self.network.socket) as helper:
                    self._helper, request = helper, self.network.request
                    async with helper.attach(request, Fd.borrow(self._namespace)) as attachment:
                        # A caller that is cancelled already waits for our end: no shield may be
                        # put up before that was looked at, and nothing awaited between.
                        await trio.lowlevel.checkpoint_if_cancelled()
                        # Now it is the run's, no more its caller's: it is ended by being left.
                        opening.deadline, self._scope.shield = math.inf, True
                        last, self.attachment = self.attachment, attachment
                        self.held = True
                        self._supervised.started(attachment)
                        self._tell()
                        if last not in (None, attachment):
                            await self._regranted()
                        await self._left.wait()
        except BaseExceptionGroup as group:
            raise single(group) from group
        if opening.cancelled_caught:
            raise Unavailable(
                f"network {self.network.name} attaches nothing within {ATTACH_SECONDS:g} s"
            )

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait_held(self) -> None:
        """Return when it is held; opens it now if it waits to do so."""
        self._supervised.resume()
        while not self.held:
            await self._changed.wait()

    def leave_when_held(self) -> None:
        """Have it left as soon as it is held."""
        self._left.set()

    def open_now(self) -> None:
        """Open it now if it waits to do so, and often from now on: its helper may be back."""
        self._supervised.reset()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._supervised.over

    async def leave(self) -> bool:
        """Leave in order; return whether it was done within five seconds. Else it goes on."""
        self.leave_when_held()
        self._supervised.resume()
        with trio.move_on_after(LEAVE_SECONDS):
            await self._supervised.wait()
        return self.over

    async def abandon(self) -> None:
        """End it as a crash would: the attachment stays as long as the namespace does."""
        self._abandoned = True
        if self._helper is not None:
            connection_of(self._helper).abort()
        await self._supervised.stop()

    def release(self) -> None:
        """Let the cancellation of whoever runs it end it, held or not."""
        self._scope.shield = False
