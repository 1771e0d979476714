"""The keeper: a small process between a parent and the child that it spawned.

It forks the child, adopts whatever the child's descendants leave behind, and ends them all: when
the child has ended, when the parent asks, and when the parent is gone. It has one thread and never
runs an event loop. Why a process of its own: a child that is wedged, stopped or killed can't clean
up after itself, the parent may be killed, and a subreaper must reap all of its children, which
would take those of the program's own libraries from under them.

| seen | then |
|---|---|
| the child has ended | SIGKILL to what is left of the tree; the parent is told how it ended |
| end of file from the parent | the child sees the same and cleans up; after the bound as below |
| `T` from the parent | SIGTERM and SIGCONT to the tree; after the bound SIGKILL |

If the keeper itself is killed, the kernel kills the child; the child's descendants are then
nobody's.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import time
from typing import NoReturn

from container.ipc.spawning import offspring, orders, tree
from container.ipc.spawning.ending import KILL_BOUND, Ending, StopBounds

AGAIN = 0.02
"""Seconds after which those are killed who were forked while the others were."""


def keep(control: socket.socket, order: orders.Order) -> None:
    """Fork the child, in which this returns; in this process it does not.

    In the child only descriptors 0, 1, 2 and `orders.CHILD` are left, the latter moved to
    `orders.KEEPER`, and it leads a session of its own.
    """
    tree.become_subreaper()
    keeper = os.getpid()
    if not gc.get_freeze_count():  # a zygote has done so for all of its children
        gc.collect()
        gc.freeze()
    wake_out, wake_in = socket.socketpair()
    for end in (wake_out, wake_in):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, _noticed)
    signal.set_wakeup_fd(wake_in.fileno(), warn_on_full_buffer=False)
    gc.disable()
    try:
        child = os.fork()
    except OSError as error:
        control.sendall(orders.FAILED + (error.errno or 0).to_bytes(2, "big"))
        os._exit(70)
    if child == 0:
        tree.end_with_parent(keeper)
        for sock in (control, wake_in, wake_out):
            sock.detach()
        os.setsid()
        offspring.place({orders.CHILD: orders.KEEPER})
        offspring.keep_only([orders.KEEPER])
        os.set_inheritable(orders.KEEPER, False)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        offspring.reset_random_states()
        offspring.name_process(order.name)
        gc.enable()
        return
    try:
        offspring.name_process("keeper")
        os.close(orders.CHILD)
        # A terminal's and a person's signals are not for the keeper: its life is its parent's.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        _Keeper(control, wake_out, child, order.bounds).run()
    finally:
        os._exit(70)


def _noticed(*_: object) -> None:
    """Do nothing: a signal with a handler writes to the wake-up descriptor."""


class _Keeper:
    def __init__(
        self, control: socket.socket, wake: socket.socket, child: int, bounds: StopBounds
    ) -> None:
        self._control = control
        self._wake = wake
        self._child = child
        self._bounds = bounds
        self._ending: Ending | None = None
        self._terminate_at = float("inf")
        self._kill_at = float("inf")

    def run(self) -> NoReturn:
        pidfds = [os.pidfd_open(self._child), os.pidfd_open(os.getpid())]
        with contextlib.suppress(OSError):
            socket.send_fds(self._control, [orders.BORN], pidfds)
        for fd in pidfds:
            os.close(fd)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        tree.reap(self._ended)
        while self._ending is None:
            wake_at = min(self._terminate_at, self._kill_at)
            wait = None if wake_at == float("inf") else max(0.0, wake_at - time.monotonic())
            ready = {fd for fd, _ in poll.poll(None if wait is None else wait * 1000 + 1)}
            if self._control.fileno() in ready and not self._hear():
                poll.unregister(self._control)
            self._quieten()
            tree.reap(self._ended)
            now = time.monotonic()
            if self._kill_at <= now:
                break
            if self._terminate_at <= now:
                self._terminate()
        survivors = self._kill_all()
        ending = self._ending or Ending()
        word = orders.pack_ending(Ending(ending.status, ending.signal, survivors))
        with contextlib.suppress(OSError):
            self._control.send(word, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        os._exit(0)

    def _hear(self) -> bool:
        """Hear the parent; False when there is nothing more to hear."""
        try:
            word = self._control.recv(1)
        except OSError:
            word = b""
        if word == orders.TERMINATE:
            self._terminate()
        elif not word:
            patience = self._bounds.cleanup + self._bounds.cancel
            self._terminate_at = min(self._terminate_at, time.monotonic() + patience)
            return False
        return True

    def _terminate(self) -> None:
        self._terminate_at = float("inf")
        if self._kill_at == float("inf"):
            self._kill_at = time.monotonic() + self._bounds.terminate
            tree.signal_descendants(signal.SIGTERM)
            tree.signal_descendants(signal.SIGCONT)

    def _kill_all(self) -> int:
        """Kill and reap until nothing is left; return how many could not be ended in time."""
        until = time.monotonic() + KILL_BOUND
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while tree.reap(self._ended):
            if time.monotonic() > until:
                return sum(1 for _ in tree.descendants(os.getpid()))
            tree.signal_descendants(signal.SIGKILL)
            poll.poll(AGAIN * 1000)
            self._quieten()
        return 0

    def _quieten(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)

    def _ended(self, pid: int, status: int) -> None:
        if pid == self._child and self._ending is None:
            code = os.waitstatus_to_exitcode(status)
            self._ending = Ending(status=code) if code >= 0 else Ending(signal=-code)
