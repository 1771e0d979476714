"""The rows of published ports: what a stream through one costs, and what making one costs.

Everything is in network namespaces of its own: a host with our network helper, one whose port is
led to a container by hand (a veth pair and three rules of nft, without a bridge), and a machine
beside each. Both sides have the same sender and receiver, processes that move pieces of 1 MiB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import trio
from attrs import frozen

from benchmarks.figures import Comparison, Figure, Goal
from benchmarks.options import Options
from benchmarks.worker import PeerUnavailable
from container.contracts.network import AttachmentRequest, Network, PublishedPort
from container.ipc import in_memory
from container.network.service import NetworkService
from container.testing.network import (
    NetworkNamespace,
    can_make_namespaces,
    network_configuration,
)

STREAM, RELAY, PUBLISH = "network.port.stream", "network.port.relay", "network.port.publish"
NAMES = (STREAM, RELAY, PUBLISH)
ENDS = Path(__file__).parent / "peers" / "tcp_stream.py"
INSIDE, OUTSIDE = 80, 8080
_PUBLISHED = 10
"""Changes of ports in a round."""

BY_HAND = """
table ip by-hand {
  chain arriving {
    type nat hook prerouting priority dstnat;
    ip daddr 192.0.2.1 tcp dport 8080 dnat to 10.1.0.2:80
  }
  chain leaving {
    type nat hook postrouting priority srcnat;
    ip saddr 10.1.0.0/24 oifname "eth0" masquerade
  }
}
"""


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Return a figure for each row that is asked for."""
    measures = {STREAM: _stream, RELAY: _relay, PUBLISH: _publish}
    return [measures[name](options) for name in names]


def _stream(options: Options) -> Figure:
    ours: list[float] = []
    theirs: list[float] = []
    note = ""
    try:
        with _by_hand() as by_hand, _machine() as machine:
            for_rounds = partial(_rounds, machine, options, "192.0.2.1", ours, by_hand, theirs)
            with machine.host.entered():
                trio.run(for_rounds)
    except PeerUnavailable as error:
        note = str(error)
    return Figure(
        name=STREAM,
        peer="a veth pair and nft by hand",
        unit="MiB/s",
        ours=tuple(ours),
        theirs=tuple(theirs),
        goal=Goal.AT_LEAST,
        limit=0.9,
        note=note,
    )


def _relay(options: Options) -> Figure:
    ours: list[float] = []
    theirs: list[float] = []
    note = "spliced in the helper, beside the same port of 127.0.0.1, which rules lead on"
    try:
        with _machine() as machine:
            by_rule = _Sender(machine.host, "127.0.0.1")
            for_rounds = partial(_rounds, machine, options, "::1", ours, by_rule, theirs)
            with machine.host.entered():
                trio.run(for_rounds)
    except PeerUnavailable as error:
        note = str(error)
    return Figure(
        name=RELAY,
        peer="127.0.0.1, by rules",
        unit="MiB/s",
        ours=tuple(ours),
        theirs=tuple(theirs),
        note=note,
    )


def _publish(options: Options) -> Figure:
    ours: list[float] = []
    theirs: list[float] = []
    note = "publishing one port and taking it back, each, beside one nft that adds an element"
    try:
        with _machine() as machine, machine.host.entered():
            trio.run(partial(_changes, machine, options, ours, theirs))
    except PeerUnavailable as error:
        note = str(error)
    return Figure(
        name=PUBLISH,
        peer="nft",
        unit="ms",
        ours=tuple(ours),
        theirs=tuple(theirs),
        note=note,
        comparison=Comparison.DIFFERENCE,
    )


@frozen
class _Machine:
    """A host for our network, and a machine beside it."""

    host: NetworkNamespace
    beside: NetworkNamespace
    inside: NetworkNamespace


@frozen
class _Sender:
    """From where a stream is sent, and to what address."""

    place: NetworkNamespace
    address: str

    def send(self, mib: int) -> float:
        """Send so many MiB to the published port; return MiB a second."""
        argv = self.place.command(
            *(sys.executable, "-I", str(ENDS)),
            *("send", self.address, str(OUTSIDE), str(mib)),
        )
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            raise PeerUnavailable(f"sending failed: {done.stderr.strip()[-200:]}")
        return mib / float(done.stdout)


@contextmanager
def _machine() -> Generator[_Machine]:
    if not can_make_namespaces():
        raise PeerUnavailable("network namespaces can't be made here: run as root")
    with NetworkNamespace() as host, NetworkNamespace() as beside, NetworkNamespace() as inside:
        host.connect_to(beside, "eth0", "eth0", ("192.0.2.1/24",), ("192.0.2.9/24",))
        yield _Machine(host, beside, inside)


@contextmanager
def _by_hand() -> Generator[_Sender]:
    with _machine() as machine, _receiver(machine.inside):
        veth = ("10.1.0.1/24",), ("10.1.0.2/24",)
        machine.host.connect_to(machine.inside, "veth0", "eth0", *veth)
        machine.inside.run("ip", "route", "add", "default", "via", "10.1.0.1")
        machine.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        machine.host.run("nft", "-f", "-", input=BY_HAND)
        yield _Sender(machine.beside, "192.0.2.1")


@contextmanager
def _receiver(place: NetworkNamespace) -> Generator[None]:
    """Run the receiving end for a block."""
    with ExitStack() as stack:
        argv = place.command(sys.executable, "-I", str(ENDS), "receive", str(INSIDE))
        process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
        stack.callback(process.kill)
        assert process.stdout is not None
        process.stdout.readline()
        yield


async def _rounds(
    machine: _Machine,
    options: Options,
    address: str,
    ours: list[float],
    other: _Sender,
    theirs: list[float],
) -> None:
    # Short rounds, in turns: what else the machine does meets both sides.
    mib = options.size // 16
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        service = NetworkService(Path(folder), network_configuration())
        port = PublishedPort(INSIDE, OUTSIDE)
        request = AttachmentRequest(key="bench", interface="eth0", name="bench", ports=(port,))
        mine = _Sender(machine.beside if "." in address else machine.host, address)
        async with in_memory(service) as network:
            async with network.attach(request, machine.inside.duplicate()):
                with _receiver(machine.inside):
                    # The first of each is not counted.
                    for number in range(options.rounds + 1):
                        turns = [(mine, ours), (other, theirs)]
                        for sender, values in turns if number % 2 else reversed(turns):
                            rate = await trio.to_thread.run_sync(sender.send, mib)
                            if number:
                                values.append(rate)


async def _changes(
    machine: _Machine, options: Options, ours: list[float], theirs: list[float]
) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        service = NetworkService(Path(folder), network_configuration())
        request = AttachmentRequest(key="bench", interface="eth0", name="bench")
        machine.host.run("nft", "add table ip t; add set ip t s { type inet_service; }")
        async with in_memory(service) as network:
            async with network.attach(request, machine.inside.duplicate()):
                for number in range(options.rounds + 1):
                    mine = await _published(network)
                    if number:
                        ours.append(mine)
                        theirs.append(await _bare_nft(number))


async def _published(network: Network) -> float:
    began = time.perf_counter()
    for _ in range(_PUBLISHED // 2):
        await network.publish("bench", (PublishedPort(INSIDE, OUTSIDE),))
        await network.publish("bench", ())
    return (time.perf_counter() - began) / _PUBLISHED * 1e3


async def _bare_nft(number: int) -> float:
    began = time.perf_counter()
    for _ in range(_PUBLISHED // 2):
        for verb in ("add", "delete"):
            await trio.run_process(["nft", f"{verb} element ip t s {{ {number} }}"])
    return (time.perf_counter() - began) / _PUBLISHED * 1e3
