"""A container's place in networks: its network namespace, and a session with each network's helper.

The namespace is made here and has no name; the OCI runtime is given a path to the descriptor. A
helper that is killed leaves none that no process is in. Its successor finds the namespace by the
container's first process, and what it was attached to in a document (`NetworksRecord`): what was
joined or left half is left.

What is *not* here: interfaces, addresses, rules and names; they are the network helper's.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio
from attrs import evolve

from container.contracts.network import Attachment
from container.contracts.runtime import SandboxNetwork, SandboxSpec
from container.ipc import (
    AlreadyExists,
    ContainerError,
    Fd,
    InvalidArgument,
    InvalidState,
    Supervised,
    Unavailable,
)
from container.ipc.nursery import ended_with_block, together
from container.runtime.names_files import NamesFiles
from container.runtime.namespace import NetworkNamespaces
from container.runtime.records import NetworksRecord, Records
from container.runtime.sessions import LEAVE_SECONDS, ConnectNetwork, Session

_log = logging.getLogger(__name__)


class Networking:
    """The network namespace of one container, and its sessions.

    Args:
        namespaces: Makes and finds namespaces.
        connect: Connects to a network's helper.
        records: Where it is written what the container is attached to.
        files: Of the container, in which that is said too.
    """

    def __init__(
        self,
        namespaces: NetworkNamespaces,
        connect: ConnectNetwork,
        records: Records,
        files: NamesFiles,
    ) -> None:
        self._namespaces = namespaces
        self._connect = connect
        self._records = records
        self._files = files
        self._spec: SandboxSpec | None = None
        self._namespace: Fd | None = None
        self._ready = trio.Event()
        self._sessions: dict[str, Session] = {}
        """By the network's id."""
        self._alive: set[Session] = set()
        """All that run, those too that are being left or were replaced."""
        self._record = NetworksRecord()
        self._writing = trio.Lock()
        self._ending = False
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Hold sessions for the block; those that were not ended break off at its end."""
        async with ended_with_block() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._forget()

    # --- a run ---

    async def begin(self, spec: SandboxSpec, namespace: Fd | None) -> None:
        """Make the container's namespace, and attach it to its networks, all or none.

        On failure or cancellation some may be attached: `end` leaves them.

        Args:
            spec: The container.
            namespace: Another container's, to be shared; borrowed.

        Raises:
            ContainerError: as `Network.attach`.
        """
        self._ending, self._spec = False, spec
        if namespace is not None:
            await trio.to_thread.run_sync(self._namespaces.check, namespace)
            self._namespace = namespace.duplicate()
        elif spec.network != "host":
            self._namespace = await trio.to_thread.run_sync(self._namespaces.make)
        self._ready.set()
        if spec.network == "networks":
            networks = arranged(spec.networks)
            # All of them first: they stay in the order that the user has given.
            self._sessions = {network.id: self._session(network) for network in networks}
            await together(*[partial(self._open, each) for each in self._sessions.values()])
            self._record = NetworksRecord(networks)

    async def write_down(self) -> None:
        """Write what the container is attached to: for the next helper, and for the container."""
        await self._write(names=True)

    async def _note(self) -> None:
        try:
            await self.write_down()
        except Unavailable as error:
            _log.warning("%s", error)

    def _write_names(self, spec: SandboxSpec, attachments: tuple[Attachment, ...]) -> None:
        try:
            self._files.update(spec, attachments)
        except OSError as error:
            # No space is left, or the run is over: no reason to leave a network for.
            _log.warning("hosts and resolv.conf are not up to date: %s", error)

    async def path(self) -> str | None:
        """Return where the OCI runtime finds the namespace, once it is made; None is the host's."""
        await self._ready.wait()
        if self._namespace is None:
            return None
        return self._namespaces.path(self._namespace)

    async def take_up(self, spec: SandboxSpec, record: NetworksRecord | None, pid: int) -> None:
        """Go on with what a helper before this one has begun; does not wait for any network.

        Args:
            spec: The container.
            record: What it was attached to.
            pid: Of its first process, which lives.
        """
        self._ready.set()
        self._spec = spec
        if spec.network == "host":
            return
        self._namespace = await trio.to_thread.run_sync(self._namespaces.of, pid)
        self._record = record or NetworksRecord(networks=arranged(spec.networks))
        known = {each.network: each for each in self._record.attachments}
        for network in self._record.networks:
            session = self._sessions[network.id] = self._session(network)
            session.attachment = known.get(network.id)
            self._start(self._run, session)
        for network in self._record.unfinished:
            self._start(self._finish_leaving, self._session(network))
        if self._record.networks or self._record.unfinished:
            await self._note()

    def attachments(self) -> tuple[Attachment, ...]:
        """Return what the container is attached to now."""
        return tuple(s.attachment for s in self._sessions.values() if s.attachment is not None)

    def _way_out_first(self) -> tuple[Attachment, ...]:
        """Return them with the one before that leads out: an internal network's DNS server knows
        no names of the world, and the host is not reached by one."""
        sessions = self._sessions.values()
        ordered = sorted(sessions, key=lambda each: not each.network.request.default_route)
        return tuple(each.attachment for each in ordered if each.attachment is not None)

    def launcher_came(self) -> None:
        """Open now what waits to be opened again: it is launchers that start networks' helpers."""
        for session in self._alive:
            session.open_now()

    async def hand_out(self) -> Fd:
        """Return a further descriptor of the namespace; what shares it is taken care of at the end.

        Raises:
            InvalidState: the container uses the host's.
        """
        namespace = self._own_namespace().duplicate()
        try:
            if not self._record.shared:
                await self._write(shared=True)
        except BaseException:
            namespace.close()
            raise
        return namespace

    async def end(self) -> None:
        """Leave all networks; whoever runs in the namespace still keeps what it has. Bounded.

        The container's own processes have ended.
        """
        self._ending = True
        shared = False
        try:
            if self._alive and self._record.shared and self._namespace is not None:
                shared = await trio.to_thread.run_sync(
                    self._namespaces.has_processes, self._namespace
                )
            async with trio.open_nursery() as nursery:
                for session in self._alive:
                    nursery.start_soon(self._end_session, session, shared)
        finally:
            self._forget()

    async def _end_session(self, session: Session, shared: bool) -> None:
        # One that is not held has nobody to tell: who comes there sees that the namespace is gone.
        ours = session in self._sessions.values()
        if shared or not ours or not session.held or not await session.leave():
            await session.abandon()

    def _forget(self) -> None:
        for session in self._alive:
            session.release()
        self._sessions.clear()
        if self._namespace is not None:
            self._namespace.close()
        self._namespace = self._spec = None
        self._ready = trio.Event()
        self._record = NetworksRecord()

    # --- changes ---

    async def join(self, network: SandboxNetwork) -> Attachment:
        """Attach to one more network; nothing is changed if that fails or is cancelled.

        Raises:
            AlreadyExists: it is in this network, or the interface's name is taken.
            InvalidState: it has no network namespace of its own.
            ContainerError: as `Network.attach`.
        """
        self._own_namespace()
        check_networks((*self._record.networks, network))
        networks = arranged((*self._record.networks, network))
        try:
            # An attachment that nobody knows of must not stay if we are killed meanwhile.
            await self._write(unfinished=(*self._record.unfinished, network))
            session = self._sessions[network.id] = self._session(networks[-1])
            await self._open(session)
            await self._write(networks=networks, unfinished=self._unfinished_but(network.id))
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._drop(network.id)
            raise
        await self._renew(networks)
        assert session.attachment is not None
        return session.attachment

    async def leave(self, network: str) -> None:
        """Leave a network; one that it is not in is no error.

        Raises:
            Unavailable: its helper does not answer. If it could not be asked nothing was changed;
                else it is left as soon as it can be.
        """
        session = self._sessions.get(network)
        if session is None:
            return
        with trio.move_on_after(LEAVE_SECONDS):
            await session.wait_held()
        if not session.held:
            raise Unavailable(f"network {session.network.name} can't be reached")
        networks = arranged(tuple(n for n in self._record.networks if n.id != network))
        # Shielded: two small files and a bounded wait, not worth being cut in half.
        with trio.CancelScope(shield=True):
            del self._sessions[network]
            await self._write(
                networks=networks, unfinished=(*self._record.unfinished, session.network)
            )
            if not await session.leave():
                raise Unavailable(f"network {session.network.name} can't be left in time")
            await self._write(unfinished=self._unfinished_but(network))
        await self._renew(networks)

    async def _drop(self, network: str) -> None:
        session = self._sessions.pop(network, None)
        if session in self._alive and not await session.leave():
            return  # it goes on, and is written down as unfinished
        if self._ending:
            return
        await self._write(
            networks=arranged(tuple(n for n in self._record.networks if n.id != network)),
            unfinished=self._unfinished_but(network),
        )

    async def _finish_leaving(self, session: Session) -> None:
        """Leave what a helper before this one has joined or left half."""
        session.leave_when_held()
        await self._run(session)
        if not self._ending:
            with suppress(Unavailable):  # then the next helper finds nothing to leave
                await self._write(unfinished=self._unfinished_but(session.network.id))

    async def _renew(self, networks: tuple[SandboxNetwork, ...]) -> None:
        """Say to helpers what has changed for their attachments: neighbours, the way out."""

        async def renew(network: SandboxNetwork) -> None:
            last = self._sessions.get(network.id)
            if last is None or last.network == network:
                return
            last.network = network  # for its next opening, should this one fail
            session = self._session(network)
            try:
                await self._open(session)
            except ContainerError as error:
                _log.warning("network %s is not told of a change: %s", network.name, error)
                return
            finally:
                if session.held:
                    self._sessions[network.id] = session
            await last.leave()  # of no effect: the new one has taken the attachment up

        await together(*[partial(renew, network) for network in networks])
        await self.write_down()

    # --- the parts ---

    def _own_namespace(self) -> Fd:
        if self._namespace is None:
            raise InvalidState("the container has no network namespace of its own")
        return self._namespace

    def _session(self, network: SandboxNetwork) -> Session:
        return Session(network, self._own_namespace(), self._connect, self._note)

    async def _open(self, session: Session) -> None:
        if self._nursery is None or self._ending:
            raise InvalidState("the container is not there")
        await self._nursery.start(self._run_opened, session)

    async def _run_opened(
        self, session: Session, *, task_status: trio.TaskStatus[Supervised[Attachment]]
    ) -> None:
        self._alive.add(session)
        try:
            await session.run_opened(task_status=task_status)
        finally:
            self._alive.discard(session)
        if session.attachment is None:
            raise InvalidState("the container has ended meanwhile")

    async def _run(self, session: Session) -> None:
        self._alive.add(session)
        try:
            await session.run()
        finally:
            self._alive.discard(session)

    def _start(self, work: Callable[[Session], Awaitable[None]], session: Session) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(work, session)

    def _unfinished_but(self, network: str) -> tuple[SandboxNetwork, ...]:
        return tuple(each for each in self._record.unfinished if each.id != network)

    async def _write(self, *, names: bool = False, **changes: object) -> None:
        async with self._writing:  # the latest comes last
            record = evolve(self._record, attachments=self.attachments(), **changes)
            spec, ordered = self._spec, self._way_out_first()
            self._record = record

            def write() -> None:
                self._records.write_networks(record)
                if names and spec is not None:
                    self._write_names(spec, ordered)

            try:
                await trio.to_thread.run_sync(write)
            except OSError as error:
                raise Unavailable(f"networks can't be written down: {error.strerror}") from error


def check_networks(networks: tuple[SandboxNetwork, ...]) -> None:
    """Refuse networks that a container can't be in together.

    Raises:
        AlreadyExists: one is named twice, or two want the same interface.
    """
    ids: set[str] = set()
    interfaces: set[str] = set()
    for network in networks:
        if network.id in ids:
            raise AlreadyExists(f"the container is in network {network.name} already")
        if network.request.interface in interfaces:
            raise AlreadyExists(f"the container has an interface {network.request.interface}")
        ids.add(network.id)
        interfaces.add(network.request.interface)


def check_network_mode(spec: SandboxSpec, namespace: Fd | None) -> None:
    """Refuse a network mode that does not go with what else is said.

    Raises:
        InvalidArgument: it names what is missing or too much.
        AlreadyExists: as `check_networks`.
    """
    if (spec.network == "shared") != (namespace is not None):
        raise InvalidArgument("another's network namespace goes with the network mode `shared`")
    if (spec.network == "networks") != bool(spec.networks):
        raise InvalidArgument("networks go with the network mode `networks`, which needs one")
    check_networks(spec.networks)


def arranged(networks: tuple[SandboxNetwork, ...]) -> tuple[SandboxNetwork, ...]:
    """Return networks that know each other, and of which one leads out, if any can.

    It is the one that did, or is to, or else the first.
    """
    ids = [network.id for network in networks]
    able = [network for network in networks if network.leads_out]
    out = next((n.id for n in (*(n for n in able if n.request.default_route), *able)), None)
    return tuple(
        evolve(
            network,
            request=evolve(
                network.request,
                default_route=network.id == out,
                neighbours=tuple(each for each in ids if each != network.id),
            ),
        )
        for network in networks
    )
