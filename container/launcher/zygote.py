"""The zygote: a preloaded, single-threaded process that forks services and command lines.

It is exec'd by the launcher and ends with it. It never runs Trio itself, since a child that is
forked inside a run can't start one, and never has a second thread, since a child would inherit
locks held by threads that are not there. Modules are imported one at a time between requests, so
that a system that starts cold does not wait for what it does not need yet.

On descriptor 3 the launcher asks for services: a length (u32), JSON, and descriptors. Each is
forked twice: the middle process ends at once and the service becomes a child of the launcher,
which is the subreaper and can wait for it. The service waits at its gate, a pipe, until the
launcher has its pidfd: a launcher or zygote that dies half-way leaves no service that nobody
knows. On descriptor 4 command lines of the same user connect (`frontdoor`); these are forked
once, and how they ended is told here.

With `--no-preload` nothing is imported and services are exec'd: every one a fresh interpreter.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from container.launcher import commandline, frontdoor, offspring

CONTROL, DOOR = 3, 4
"""Where the launcher puts the two sockets."""
COMMAND_BOUND = 512
"""Command lines at once; one more is left to its own process."""
REQUEST_BOUND = 8 * 2**20
DESCRIPTOR_BOUND = 16

FIRST = ("trio", "attrs", "cattrs", "msgspec", "container.process", "container.ipc")
PACKAGES = (
    "container.storage",
    "container.contracts",
    "container.apiserver",
    "container.runtime",
    "container.images",
    "container.cli",
)
LATE = ("rich.console", "rich.table", "rich.text", "rich.progress", "subprocess", "tempfile")
PRELOAD = "CONTAINER_ZYGOTE_PRELOAD"
"""Further modules to import, separated by commas: plugins whose services have an `Entry`."""


def modules() -> Iterator[str]:
    """Yield what to import, what a cold start needs first in front."""
    yield from FIRST
    for package in PACKAGES:
        try:
            path = importlib.import_module(package).__path__
        except ImportError:
            continue
        yield package
        for module in pkgutil.walk_packages(path, package + "."):
            if not module.name.endswith(("__main__", ".front")):
                yield module.name
    yield from LATE
    yield from filter(None, os.environ.get(PRELOAD, "").split(","))


def preparations() -> Iterator[Callable[[], object]]:
    """Yield what to do before the first fork, in small steps: imports, then the contracts' codecs.

    A step that fails is said and left out; what needs it fails in its own process.
    """
    for name in modules():
        yield functools.partial(importlib.import_module, name)
    from container.ipc import Contract, prepare

    known: list[type[Contract]] = list(Contract.__subclasses__())
    for contract in known:
        known += contract.__subclasses__()
        if contract.__dict__.get("contract_name"):
            yield functools.partial(prepare, contract)


class Zygote:
    """The loop: requests of the launcher, connections of fronts, ends of children."""

    def __init__(self, control: socket.socket, door: socket.socket | None, preload: bool) -> None:
        self._control = control
        self._door = door
        self._forks_entries = preload
        self._preload = preparations() if preload else iter(())
        self._loading = preload
        self._fronts: dict[int, socket.socket] = {}
        """Connections by the pid of the child that serves them."""
        self._wake_in, self._wake_out = socket.socketpair()

    def run(self) -> None:
        """Serve until the launcher is gone."""
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        signal.signal(signal.SIGCHLD, _noticed)
        signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake_out, select.POLLIN)
        if self._door is not None:
            self._door.setblocking(False)
            poll.register(self._door, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll(0 if self._loading else None)}
            if self._wake_out.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake_out.recv(4096)
                self._bury()
            if self._control.fileno() in ready and not self._serve_launcher():
                return
            if self._door is not None and self._door.fileno() in ready:
                self._open_door()
            if not ready and self._loading:
                self._load_next()

    def _load_next(self) -> None:
        step = next(self._preload, None)
        if step is None:
            self._loading = False
            gc.collect()
            # What is alive now is never looked at by a collection again: children share its pages.
            gc.freeze()
            return
        try:
            step()
        except Exception as error:
            print(f"zygote: {step} failed: {error!r}", file=sys.stderr, flush=True)

    # --- services ---

    def _serve_launcher(self) -> bool:
        """Answer one request; False once the launcher is gone."""
        try:
            request, descriptors = receive(self._control)
        except EOFError:
            return False
        try:
            pid = self._fork_service(request, descriptors)
            reply: dict[str, Any] = {"pid": pid}
        except OSError as error:
            reply = {"error": f"can't fork: {error.strerror}"}
        finally:
            for fd in descriptors:
                os.close(fd)
        body = json.dumps(reply).encode()
        try:
            self._control.sendall(len(body).to_bytes(4, "big") + body)
        except OSError:
            return False
        return True

    def _fork_service(self, request: dict[str, Any], descriptors: list[int]) -> int:
        pid_out, pid_in = os.pipe()
        try:
            gc.disable()
            middle = os.fork()
            if middle == 0:
                try:
                    child = os.fork()
                    if child:
                        os.write(pid_in, child.to_bytes(4, "big"))
                        os._exit(0)
                    os.close(pid_in)
                    self._become_service(request, descriptors)
                finally:
                    os._exit(70)
            gc.enable()
            os.close(pid_in)
            pid_in = -1
            raw = os.read(pid_out, 4)
            os.waitpid(middle, 0)
        finally:
            os.close(pid_out)
            if pid_in >= 0:
                os.close(pid_in)
        if len(raw) != 4:
            raise OSError(11, "no more processes")
        return int.from_bytes(raw, "big")

    def _become_service(self, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
        stdin, stdout, stderr, gate, *rest = descriptors
        if os.read(gate, 1) != b"g":
            os._exit(0)  # nobody knows this process
        targets = {stdin: 0, stdout: 1, stderr: 2}
        environment: dict[str, str] = request["environment"]
        listeners = int(request["listeners"])
        for number, fd in enumerate(rest):
            targets[fd] = 3 + number
        if listeners:
            environment["LISTEN_FDS"] = str(listeners)
            environment["LISTEN_PID"] = str(os.getpid())
            environment["LISTEN_FDNAMES"] = ":".join([request["name"]] * listeners)
        if len(rest) > listeners:
            environment["CONTAINER_LIFELINE_FD"] = str(3 + listeners)
        self._let_go()
        offspring.place(targets)
        offspring.keep_only(range(3, 3 + len(rest)))
        os.setsid()
        os.umask(0o022)
        os.chdir("/")
        offspring.reset_signals()
        offspring.reset_environment(
            {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
        )
        offspring.reset_random_states()
        offspring.reset_logging()
        offspring.name_process(request["name"])
        arguments: list[str] = request["command"]
        if request["entry"] is not None and self._forks_entries:
            offspring.reset_streams()
            offspring.leave(offspring.run_entry(request["entry"], arguments))
        _execute(arguments)

    # --- command lines ---

    def _open_door(self) -> None:
        assert self._door is not None
        try:
            connection, _ = self._door.accept()
        except OSError:
            return
        if len(self._fronts) >= COMMAND_BOUND:
            connection.close()
            return
        connection.setblocking(True)
        gc.disable()
        try:
            child = os.fork()
        except OSError:
            connection.close()
            return
        finally:
            gc.enable()
        if child == 0:
            try:
                self._let_go()
                commandline.answer(connection)
            finally:
                os._exit(70)
        self._fronts[child] = connection

    def _bury(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            connection = self._fronts.pop(pid, None)
            if connection is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            kind = frontdoor.EXITED if code >= 0 else frontdoor.SIGNALED
            # After a normal end the child has said so already; the front is gone or ignores this.
            with connection, contextlib.suppress(OSError):
                connection.send(
                    kind + bytes([abs(code)]), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
                )

    def _let_go(self) -> None:
        """Forget this process's sockets in a child, so that no object closes a number used anew."""
        for owned in (self._control, self._door, self._wake_in, self._wake_out):
            if owned is not None:
                owned.detach()
        for connection in self._fronts.values():
            connection.detach()


def _noticed(number: int, frame: object) -> None:
    """Do nothing: a signal with a handler writes to the wake-up descriptor."""


def _execute(arguments: list[str]) -> NoReturn:
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    name = arguments[0]
    if "/" not in name:
        beside = os.path.join(os.path.dirname(sys.executable), name)
        name = beside if os.access(beside, os.X_OK) else name
    try:
        os.execvp(name, arguments)
    except OSError as error:
        print(f"{arguments[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Read one request with its descriptors.

    Raises:
        EOFError: the other end is gone, or what it sent is no request.
    """
    try:
        header, descriptors, flags, _ = socket.recv_fds(
            control, 4, DESCRIPTOR_BOUND, socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL
        )
    except OSError as error:
        raise EOFError from error
    length = int.from_bytes(header, "big")
    if len(header) != 4 or flags & socket.MSG_CTRUNC or length > REQUEST_BOUND:
        raise EOFError
    body = bytearray()
    while len(body) < length:
        try:
            part = control.recv(length - len(body))
        except OSError as error:
            raise EOFError from error
        if not part:
            raise EOFError
        body += part
    return json.loads(body), descriptors


def main() -> int:
    """Run the zygote on the descriptors that the launcher gave."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    preload = "--no-preload" not in sys.argv[1:]
    door: socket.socket | None = None
    if "--door" in sys.argv[1:]:
        os.set_inheritable(DOOR, False)
        door = socket.socket(fileno=DOOR)
    os.set_inheritable(CONTROL, False)
    offspring.name_process("zygote")
    os.chdir("/")
    Zygote(socket.socket(fileno=CONTROL), door, preload).run()
    # No clean-up of a whole interpreter: nothing here is worth it, and nothing may delay the end.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
