"""Services for the launcher's tests: entry functions that tell what kind of process they are.

Imported by the zygote's children through PYTHONPATH, so it is no part of a package.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import sys
import time
from typing import Any


def facts(listener: socket.socket | None) -> dict[str, Any]:
    """Return all that a process could have inherited by mistake."""
    import trio

    descriptors: dict[str, str] = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            descriptors[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
    umask = os.umask(0)
    os.umask(umask)
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "argv": sys.argv,
        "directory": os.getcwd(),
        "descriptors": descriptors,
        "environment": dict(os.environ),
        "umask": umask,
        "handlers": [
            int(number)
            for number in signal.valid_signals()
            if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN, None)
        ],
        "mask": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "random": [random.random(), trio._core._run._r.random()],  # type: ignore[attr-defined]
        "limits": [
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            resource.getrlimit(resource.RLIMIT_CORE)[0],
        ],
        "preloaded": "container.apiserver.process" in sys.modules,
        "passcred": listener.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
        if listener
        else None,
    }


def bare() -> int:
    """Answer each line with the facts, without any framework; `exit N` ends it."""
    listener = socket.socket(fileno=3) if os.environ.get("LISTEN_FDS") else None
    if listener is None:
        while True:
            time.sleep(60)
    listener.setblocking(True)
    while True:
        connection, _ = listener.accept()
        with connection:
            words = connection.recv(4096).split()
            if words[:1] == [b"exit"]:
                return int(words[1])
            if words:  # else somebody only looked whether we listen
                connection.sendall(json.dumps(facts(listener)).encode())


def telling() -> int:
    """Say the datagrams that `SAY` has, one after the other, and live on; nothing else."""
    to = os.environ["NOTIFY_SOCKET"]
    print("about to say something", file=sys.stderr, flush=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        for text in json.loads(os.environ["SAY"]):
            if isinstance(text, str):
                sock.sendto(text.encode(), to)
            else:
                time.sleep(text)
    if "STATUS" in os.environ:
        return int(os.environ["STATUS"])
    while True:
        time.sleep(60)


def failing() -> int:
    """Fail at once."""
    return 3


def idle() -> int:
    """Serve a contract until it is idle."""
    from container.process import run_process

    return run_process("container-idle", _serve_idle)


async def _serve_idle(context: Any) -> None:
    import trio

    from container.contracts.launcher import Launcher
    from container.ipc import open_service
    from container.testing.launcher import InProcessLauncher, as_it_is

    service: Launcher = InProcessLauncher(context.paths, as_it_is)  # type: ignore[arg-type]
    async with open_service(service, at=context.listener, idle=context.idle):
        await context.ready()
        await trio.sleep_forever()


def proper() -> int:
    """Work as a service does: with lifeline and signals; note the end in the file `NOTE`.

    Lines that it knows: `adopt NAME SOCKET` registers it with the launcher that is there now;
    `keep SERVICE NAME TEXT` has the launcher keep a pipe that hung up after the text; `drop SERVICE
    NAME`; `kept` tells what it was started with; `orphan PID` asks how an orphan ended; `block`
    blocks its event loop.
    """
    from container.process import run_process

    return run_process("container-proper", _serve)


async def _keep(_: Any, launcher: Any, service: str, name: str, text: str) -> str | None:
    from container.ipc import ContainerError, Fd

    out, into = os.pipe()
    os.write(into, text.encode())
    os.close(into)
    with Fd(out) as descriptor:
        try:
            await launcher.keep(service, name, descriptor)
        except ContainerError as error:
            return str(error)
    return None


async def _drop(_: Any, launcher: Any, service: str, name: str = "") -> None:
    await launcher.drop(service, name)


async def _kept(context: Any, _: Any) -> list[list[str]]:
    return [[name, os.read(fd.fileno(), 100).decode()] for name, fd in context.kept.items()]


async def _orphan(_: Any, launcher: Any, pid: str) -> int | None:
    return await launcher.orphan(int(pid))


async def _block(_: Any, __: Any) -> None:
    time.sleep(60)  # noqa: ASYNC251


_COMMANDS: dict[str, Any] = {
    "keep": _keep,
    "drop": _drop,
    "kept": _kept,
    "orphan": _orphan,
    "block": _block,
}


async def _serve(context: Any) -> None:
    import trio

    from container.contracts.launcher import Launcher, ServiceUnit
    from container.ipc import Fd

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            words = (await stream.receive_some(4096)).decode().split()
            if not words:
                return  # somebody only looked whether we listen
            if words[:1] == ["adopt"]:
                unit = ServiceUnit(
                    name=words[1],
                    command=("proper",),
                    entry="services:proper",
                    listen=words[2],
                    outlives_launcher=True,
                    restart_delay=0.05,
                )
                async with Launcher.connect(context.paths.launcher_socket) as launcher:
                    await launcher.adopt(unit, Fd.borrow(context.listener))
            answer: dict[str, Any] = {"pid": os.getpid()}
            if words[0] in _COMMANDS:
                async with Launcher.connect(context.paths.launcher_socket) as launcher:
                    answer["answer"] = await _COMMANDS[words[0]](context, launcher, *words[1:])
            await stream.send_all(json.dumps(answer).encode() + b"\n")

    try:
        await context.ready("serving")
        if context.listener is None:
            await trio.sleep_forever()
        async with trio.open_nursery() as nursery:
            listener = trio.socket.from_stdlib_socket(context.listener.dup())
            with listener:
                while True:
                    connection, _ = await listener.accept()
                    nursery.start_soon(answer, trio.SocketStream(connection))
    finally:
        note(context)


def note(context: Any) -> None:
    """Append why this process ends to the file `NOTE`."""
    if "NOTE" in os.environ:
        reason = context.stop_reason.value if context.stop_reason else None
        with open(os.environ["NOTE"], "a") as file:
            file.write(f"{os.environ['NAME']} {reason} {context.owned}\n")


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]]())
