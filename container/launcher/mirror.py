"""What the launcher keeps, a second time in systemd's descriptor store.

So that the launcher's own death loses nothing: the next one gets all of it back at its start, under
names that say for whom it was kept.

Source: sd_pid_notify_with_fds(3): FDSTORE=1, FDSTOREREMOVE=1, FDPOLL=0.
"""

from __future__ import annotations

import logging

import trio
from attrs import define, field

from container.ipc import ContainerError, Fd
from container.launcher.descriptors import DescriptorStore
from container.notify import Notifier

KIND = "kept"

_log = logging.getLogger(__name__)


def stored_name(service: str, name: str) -> str:
    """Return the name of a descriptor in systemd's store."""
    return f"{KIND}/{service}/{name}"


def restore(store: DescriptorStore, stored: dict[str, Fd]) -> None:
    """Take out of what systemd handed over all that was kept for services; the rest stays."""
    for full in tuple(stored):
        kind, _, rest = full.partition("/")
        service, slash, name = rest.partition("/")
        if kind == KIND and slash:
            with stored.pop(full) as given:
                try:
                    store.keep(service, name, given)
                except ContainerError as error:
                    # Not worth the start of the launcher, which would fail again and again.
                    _log.warning("%s is not kept any more: %s", full, error.message)


@define(eq=False)
class Mirror:
    """Says to systemd what was kept and dropped, in the order in which it was.

    A descriptor that systemd did not take is told in the log; it is kept here all the same.
    """

    notifier: Notifier
    _lock: trio.Lock = field(factory=trio.Lock)

    async def keep(self, service: str, name: str, descriptor: int) -> None:
        """Have systemd keep a descriptor, in the place of another of the name. It stays open."""
        full = stored_name(service, name)
        async with self._lock:
            await self.notifier.say({"FDSTOREREMOVE": "1", "FDNAME": full})
            # FDPOLL=0: what has hung up is kept too.
            fields = {"FDSTORE": "1", "FDNAME": full, "FDPOLL": "0"}
            if not await self.notifier.say(fields, [descriptor]):
                _log.warning("systemd did not take %s", full)

    async def drop(self, service: str, name: str) -> None:
        """Have systemd close a descriptor."""
        async with self._lock:
            await self.notifier.say({"FDSTOREREMOVE": "1", "FDNAME": stored_name(service, name)})
