"""The zygote: a preloaded, single-threaded process that forks others.

It is exec'd by its owner and ends with it. It never forks inside a run of Trio, since a child that
is forked there can't start one (there is a `rehearsal` before), and never has a second thread,
since a child would inherit locks held by threads that are not there. Modules are imported one at a
time between requests, so that a system that starts cold does not wait for what it does not need
yet.

On descriptor 3 it is asked for processes (`requests`). One is forked once and reaped here, or, if
it is to belong to the subreaper above, forked twice: the middle process ends at once. A process
with a gate waits there until its owner has its pidfd: an owner or zygote that dies half-way leaves
no process that nobody knows.

A subclass may watch sockets of its own (`watch`) and learn how its children ended (`fork`).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from container.ipc.spawning import offspring, tree
from container.ipc.spawning.requests import Fork, Preload, answer, receive

CONTROL = 3
"""Where its owner puts the socket of requests."""
Step = Callable[[], object]
FILLERS = 600
"""Of each size that Python's allocator keeps apart: about 5 MiB together, once in a zygote."""
_BYTES = sys.getsizeof(b"")


def contract_steps() -> Iterator[Step]:
    """Yield the building of the codecs of each contract that is known now."""
    from container.ipc.client import prepare
    from container.ipc.contract import Contract

    known: list[type[Contract]] = list(Contract.__subclasses__())
    for contract in known:
        known += contract.__subclasses__()
        if contract.__dict__.get("contract_name"):
            yield functools.partial(prepare, contract)


def _fill_holes() -> list[list[object]]:
    """Return objects that take the free places between those that were made before.

    A child's first small objects would go there, and each would cost a copy of its whole page; now
    they go to pages of their own, side by side.
    """
    sizes = range(_BYTES + 16 - _BYTES % 16, 513, 16)
    return [
        [object() for _ in range(FILLERS)],
        *([bytes(size - _BYTES) for _ in range(FILLERS)] for size in sizes),
    ]


def _service_steps(modules: Iterable[str]) -> Iterator[Step]:
    from container.ipc.spawning.child import served
    from container.ipc.spawning.references import services_in

    for module in modules:
        if module in sys.modules:
            for maker in services_in(module):
                yield functools.partial(served, maker)


def _rehearse() -> None:
    from container.ipc.spawning.rehearsal import rehearse

    rehearse()


class Zygote:
    """The loop: requests of the owner, sockets of a subclass, ends of children.

    Args:
        control: Where requests come from.
        steps: What to do before the first fork, in small steps. One that fails is said and left
            out; what needs it fails in its own process.
    """

    def __init__(self, control: socket.socket, steps: Iterable[Step] = ()) -> None:
        self._control = control
        self._steps = iter(steps)
        self._loading = True
        self._fillers: list[list[object]] = []
        self._threaded = False
        self._failures: dict[str, str] = {}
        self._asked: list[int] = []
        """Numbers of requests that are answered when all is loaded."""
        self._children: dict[int, Callable[[int], object]] = {}
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._owned: dict[int, socket.socket] = {}
        """Sockets that no child may keep."""
        self._poll = select.poll()
        self._wake_in, wake_out = socket.socketpair()
        self.own(self._wake_in)
        self.watch(wake_out, functools.partial(self._bury, wake_out))
        self.own(control)

    def own(self, sock: socket.socket) -> None:
        """Take note of a socket that every child has to let go of."""
        self._owned[sock.fileno()] = sock

    def disown(self, sock: socket.socket) -> None:
        """Forget a socket before it is closed."""
        self._owned.pop(sock.fileno(), None)

    def watch(self, sock: socket.socket, readable: Callable[[], object]) -> None:
        """Own a socket, made non-blocking, and call `readable` whenever it is."""
        sock.setblocking(False)
        self.own(sock)
        self._callbacks[sock.fileno()] = readable
        self._poll.register(sock, select.POLLIN)

    def run(self) -> None:
        """Serve until the owner is gone."""
        self._wake_in.setblocking(False)
        signal.signal(signal.SIGCHLD, _noticed)
        signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        self._poll.register(self._control, select.POLLIN)
        while True:
            ready = {fd for fd, _ in self._poll.poll(0 if self._loading else None)}
            if self._control.fileno() in ready:
                if not self._serve_owner():
                    return
                ready.discard(self._control.fileno())
            for fd in ready:
                self._callbacks[fd]()
            if not ready and self._loading:
                self._load_next()

    def _load_next(self) -> None:
        step = next(self._steps, None)
        if step is None:
            self._loading = False
            gc.collect()
            self._fillers = _fill_holes()
            # What is alive now is never looked at by a collection again: children share its pages.
            gc.freeze()
            for number in self._asked:
                self._answer(answer(number, failed=self._failures))
            self._asked.clear()
            return
        try:
            step()
            if not self._threaded and len(os.listdir("/proc/self/task")) > 1:
                self._threaded = True
                raise RuntimeError("it starts a thread, which no forked process would have")
        except Exception as error:
            what = str(step.args[0]) if isinstance(step, functools.partial) else str(step)
            self._failures[what] = repr(error)
            print(f"zygote: {what} failed: {error!r}", file=sys.stderr, flush=True)

    # --- the owner ---

    def _serve_owner(self) -> bool:
        """Answer one request; False once the owner is gone."""
        try:
            number, request, descriptors = receive(self._control)
        except EOFError:
            return False
        if isinstance(request, Preload):
            self._preload(number, request)
            return True
        try:
            reply = answer(number, pid=self._fork_asked(request, descriptors))
        except OSError as error:
            reply = answer(number, error=f"can't fork: {error.strerror}")
        finally:
            for fd in descriptors:
                os.close(fd)
        return self._answer(reply)

    def _answer(self, reply: bytes) -> bool:
        try:
            self._control.sendall(reply)
        except OSError:
            return False
        return True

    def _preload(self, number: int, request: Preload) -> None:
        sys.path[:] = request.path
        before = self._steps

        def steps() -> Iterator[Step]:
            yield from before
            for name in request.modules:
                yield functools.partial(importlib.import_module, name)
            yield from contract_steps()
            yield from _service_steps(request.modules)
            yield _rehearse

        self._steps = steps()
        self._asked.append(number)
        if not self._loading:
            gc.unfreeze()
            self._loading = True

    def _fork_asked(self, request: Fork, descriptors: list[int]) -> int:
        if not request.detached:
            return self.fork(functools.partial(self._become, request, descriptors))
        pid_out, pid_in = os.pipe()
        try:
            middle = self.fork(functools.partial(self._twice, request, descriptors, pid_in))
            os.close(pid_in)
            pid_in = -1
            raw = os.read(pid_out, 4)
            self._children.pop(middle)
            os.waitpid(middle, 0)
        finally:
            os.close(pid_out)
            if pid_in >= 0:
                os.close(pid_in)
        if len(raw) != 4:
            raise OSError(11, "no more processes")
        return int.from_bytes(raw, "big")

    def _twice(self, request: Fork, descriptors: list[int], pid_in: int) -> None:
        child = os.fork()
        if child:
            os.write(pid_in, child.to_bytes(4, "big"))
            os._exit(0)
        os.close(pid_in)
        self._become(request, descriptors)

    def fork(
        self, become: Callable[[], object], ended: Callable[[int], object] | None = None
    ) -> int:
        """Fork; the child runs `become`, which must not return. Returns the child's pid.

        Args:
            become: The child's work.
            ended: Called here with the child's wait status.

        Raises:
            OSError: no process can be made.
        """
        gc.disable()
        try:
            child = os.fork()
        finally:
            gc.enable()
        if child == 0:
            gc.disable()
            try:
                become()
            finally:
                os._exit(70)
        self._children[child] = ended or _noticed
        return child

    def let_go(self) -> None:
        """Forget the zygote's sockets in a child: none may close a number that is used anew."""
        for owned in self._owned.values():
            owned.detach()

    def _become(self, request: Fork, descriptors: list[int]) -> NoReturn:
        rest = list(descriptors)
        if request.gated and os.read(rest.pop(3), 1) != b"g":
            os._exit(0)  # nobody knows this process
        environment = dict(request.environment)
        if request.pid_variable is not None:
            environment[request.pid_variable] = str(os.getpid())
        self.let_go()
        offspring.place({fd: number for number, fd in enumerate(rest)})
        offspring.keep_only(range(3, len(rest)))
        os.setsid()
        os.umask(request.umask)
        os.chdir(request.directory)
        offspring.reset_signals()
        offspring.reset_environment(
            {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
        )
        offspring.reset_random_states()
        offspring.reset_logging()
        offspring.name_process(request.name)
        arguments = list(request.command)
        if request.entry is not None:
            offspring.reset_streams()
            offspring.leave(offspring.run_entry(request.entry, arguments))
        _execute(arguments)

    # --- children ---

    def _bury(self, wake: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)
        tree.reap(self._ended)

    def _ended(self, pid: int, status: int) -> None:
        self._children.pop(pid, _noticed)(status)


def _noticed(*_: object) -> None:
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


def run(make: Callable[[socket.socket], Zygote]) -> NoReturn:
    """Run a zygote on the descriptors that its owner gave, to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is its owner's to act on
    os.set_inheritable(CONTROL, False)
    os.chdir("/")
    make(socket.socket(fileno=CONTROL)).run()
    # No clean-up of a whole interpreter: nothing here is worth it, and nothing may delay the end.
    sys.stderr.flush()
    os._exit(0)


def main() -> NoReturn:
    """Run a zygote that imports what it is told to import."""
    run(Zygote)
