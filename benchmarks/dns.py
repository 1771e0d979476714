"""The rows of DNS: answers a second of one core, and what one client waits beside another's flood.

Ours and dnsmasq know the same names, listen on loopback, and are kept on one processor; who asks is
on another, if there is one. The second of a core is one of the server's processor time: how many
answers come in a second of the clock is as much a matter of who asks, and of what else runs.

A client is an address of 127.0.0.0/8. The flood asks for names that nobody has, another each time
(`beside-flood`), or for names that another server is asked for, which answers at once
(`beside-forwards`), and never waits for an answer; it is nice, so that what is measured is the
server and not whose turn the kernel thinks it is. A query that is not answered within a second
counts as one that took that second.

    python -m benchmarks.dns serve|flood|forwards PORT UPSTREAM
"""

from __future__ import annotations

import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio
from attrs import frozen

from benchmarks.figures import Comparison, Figure, Goal
from benchmarks.options import Options
from benchmarks.worker import PeerUnavailable
from container.resolver import DnsServer, Entry, Names, Upstreams, listen

RATE, FLOODED, FORWARDED = "dns.answers", "dns.beside-flood", "dns.beside-forwards"
NAMES = (RATE, FLOODED, FORWARDED)
SERVER, ASKER, FLOODER = "127.0.0.1", "127.0.0.3", "127.0.0.2"
_CONTAINERS = 200
_OUTSTANDING = 64
_EACH = 0.002
_LOST = 1.0
_MEASURED = 1.0


@frozen
class _Server:
    process: int
    port: int

    def processor_time(self) -> float:
        """Return seconds. Source: clock_getcpuclockid(3), as the kernel encodes it."""
        return time.clock_gettime(~self.process << 3 | 2)


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Return a figure for each row that is asked for."""
    seconds = _MEASURED / options.fewer
    figures: list[Figure] = []
    for name in names:
        take = {
            RATE: _answers_a_second,
            FLOODED: partial(_p99_beside_flood, "flood"),
            FORWARDED: partial(_p99_beside_flood, "forwards"),
        }[name]
        ours: list[float] = []
        theirs: list[float] = []
        note = f"{_CONTAINERS} containers; the goal is on ours alone"
        with _dnsmasq_or_nothing() as upstream, _ours(upstream) as server:
            try:
                with _dnsmasq(upstream) as other:
                    for _ in range(options.rounds):
                        ours.append(take(server, seconds))
                        theirs.append(take(other, seconds))
            except PeerUnavailable as error:
                note = str(error)
                ours = [take(server, seconds) for _ in range(options.rounds)]
        figures.append(
            Figure(
                name=name,
                peer="dnsmasq",
                unit="/s" if name == RATE else "ms",
                ours=tuple(ours),
                theirs=tuple(theirs),
                goal=Goal.AT_LEAST if name == RATE else Goal.AT_MOST,
                limit=5000 if name == RATE else 5,
                comparison=Comparison.ALONE,
                note=note,
            )
        )
    return figures


def _answers_a_second(server: _Server, seconds: float) -> float:
    """Ask with so many queries under way, whose names are drawn, and count what is answered."""
    with _client(server.port) as asker:
        queries = [_query(i, _name(i)) for i in range(_CONTAINERS)]
        sent = lost = answered = 0
        before = server.processor_time()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            while sent - answered - lost < _OUTSTANDING:
                asker.send(random.choice(queries))
                sent += 1
            if not select.select([asker], [], [], 0.2)[0]:
                lost = sent - answered
                continue
            while True:
                try:
                    asker.recv(2048)
                except BlockingIOError:
                    break
                answered += 1
        return answered / (server.processor_time() - before)


def _p99_beside_flood(flood: str, server: _Server, seconds: float) -> float:
    """Return milliseconds: the 99th percentile of queries, one each 2 ms, beside a flood."""
    took: list[float] = []
    with (
        _process(flood, server.port, 0, _others()) as flooder,
        _client(server.port) as asker,
    ):
        assert flooder.stdout is not None
        flooder.stdout.readline()
        # It fills the server's buffer before the first query is measured.
        time.sleep(0.1)
        # A server that loses many is not asked as often: each takes a second.
        until = time.perf_counter() + 5 * seconds
        for number in range(max(100, int(seconds / _EACH))):
            sent = time.perf_counter()
            if took and sent > until:
                break
            asker.send(_query(number, _name(number)))
            while (left := sent + _LOST - time.perf_counter()) > 0:
                came = select.select([asker], [], [], left)[0]
                if came and struct.unpack_from("!H", asker.recv(2048))[0] == number:
                    break
            took.append(time.perf_counter() - sent)
            if (pause := sent + _EACH - time.perf_counter()) > 0:
                time.sleep(pause)
    took.sort()
    return took[int(0.99 * len(took))] * 1e3


@contextmanager
def _client(port: int) -> Generator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.bind((ASKER, 0))
        asker.connect((SERVER, port))
        asker.setblocking(False)
        yield asker


def _name(number: int) -> str:
    return f"web-{number % _CONTAINERS}"


def _query(number: int, name: str) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return struct.pack("!6H", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\x01\0\x01"


# Servers and the flood


@contextmanager
def _ours(upstream: int) -> Generator[_Server]:
    with _process("serve", 0, upstream, _first()) as process:
        assert process.stdout is not None
        yield _Server(process.pid, int(process.stdout.readline()))


@contextmanager
def _dnsmasq_or_nothing() -> Generator[int]:
    """Hold a server that knows every name; the port where nobody listens if there is none."""
    try:
        with _dnsmasq(0, "--address=/#/192.0.2.1", processors=_others()) as server:
            yield server.port
    except PeerUnavailable:
        yield 1


@contextmanager
def _dnsmasq(
    upstream: int, *options: str, processors: set[int] | None = None
) -> Generator[_Server]:
    program = shutil.which("dnsmasq") or shutil.which("dnsmasq", path="/usr/sbin:/sbin")
    if program is None:
        raise PeerUnavailable("dnsmasq is not installed")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((SERVER, 0))
        port = probe.getsockname()[1]
    command = [
        program,
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
    ]
    command += ["--pid-file=", "--user=", f"--port={port}", f"--listen-address={SERVER}"]
    command += ["--bind-interfaces", "--local-ttl=5", *options]
    if upstream:
        command += ["--domain-needed", f"--server={SERVER}#{upstream}"]
    command += [f"--host-record={_name(i)},10.89.0.{i + 2}" for i in range(_CONTAINERS)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        os.sched_setaffinity(process.pid, processors or _first())
        _await_answer(process, port)
        yield _Server(process.pid, port)
    finally:
        process.kill()
        process.communicate()


def _await_answer(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(50):
        if process.poll() is not None:
            assert process.stderr is not None
            raise PeerUnavailable(f"dnsmasq: {process.stderr.read().decode().strip()}")
        with _client(port) as asker:
            try:
                asker.send(_query(1, _name(1)))
                if select.select([asker], [], [], 0.1)[0] and asker.recv(2048):
                    return
            except ConnectionRefusedError:
                time.sleep(0.05)
    raise PeerUnavailable("dnsmasq does not answer")


@contextmanager
def _process(
    what: str, port: int, upstream: int, processors: set[int]
) -> Generator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.dns", what, str(port), str(upstream)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        os.sched_setaffinity(process.pid, processors)
        yield process
    finally:
        process.kill()
        process.communicate()


def _first() -> set[int]:
    return {min(os.sched_getaffinity(0))}


def _others() -> set[int]:
    return os.sched_getaffinity(0) - _first() or _first()


def _flood(port: int, domain: str) -> None:
    os.nice(19)
    # Each another, so that nothing that was answered before helps.
    queries = [_query(1, f"x{random.getrandbits(64):x}{domain}") for _ in range(1 << 16)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder:
        flooder.bind((FLOODER, 0))
        # What comes back is dropped by the kernel, for want of room.
        flooder.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        flooder.connect((SERVER, port))
        print("it begins", flush=True)
        while True:
            for query in queries:
                flooder.send(query)


async def _serve(upstream: int) -> None:
    names = Names(["127.0.0.0/8"], [SERVER])
    for i in range(_CONTAINERS):
        names.put(Entry(str(i), (f"10.89.0.{i + 2}",), (_name(i),)))
    listener = listen(SERVER)
    with tempfile.NamedTemporaryFile("w", prefix="bench-") as file:
        print("nameserver", SERVER, file=file, flush=True)
        upstreams = Upstreams(resolv_conf=Path(file.name), port=upstream)
        async with trio.open_nursery() as nursery:
            await nursery.start(DnsServer(names, upstreams).serve, [listener])
            print(listener.udp_port, flush=True)


if __name__ == "__main__":
    match sys.argv[1]:
        case "serve":
            trio.run(_serve, int(sys.argv[3]))
        case what:
            _flood(int(sys.argv[2]), {"flood": "", "forwards": ".example"}[what])
