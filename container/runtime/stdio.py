"""What the descriptors of one process of a container are connected to.

| | a descriptor was given | none: first process, log kept | none: otherwise |
|---|---|---|---|
| stdin | that one | `/dev/null`, or a pipe without an end (`keep_input`) | the same |
| stdout, stderr | that one | a pipe into the log | `/dev/null` |

With a terminal all three are the terminal, whose master comes to us: its output goes to the log if
one is kept, and its input comes from a pipe whose other end is handed out; else the master itself
is handed out.

What would be lost with this helper has a name (`descriptors`): under it a launcher keeps it, and
the next helper's `resume` takes it up.
"""

from __future__ import annotations

import errno
import os
from typing import Self

import trio
from attrs import define, field

from container.contracts.logs import LogStream
from container.contracts.runtime import ProcessSpec, Stdio, TerminalSize
from container.ipc import Fd, InvalidState
from container.runtime.log import LogWriter, log_pipe
from container.runtime.oci import ProcessStdio
from container.runtime.terminal import set_size


@define(eq=False)
class Plumbing:
    """The descriptors of one process: theirs until it was made, ours until it ended."""

    log: LogWriter | None
    terminal_size: TerminalSize | None = None
    _theirs: list[int] = field(factory=list[int])
    """Closed once the process has them."""
    _ours: list[int] = field(factory=list[int])
    """Closed when it has ended."""
    _sources: list[tuple[int, LogStream]] = field(factory=list[tuple[int, LogStream]])
    _stdio: ProcessStdio | None = None
    _master: int | None = None
    _input: tuple[int, int] | None = None
    """Of the pipe into the terminal: where we read, and what is handed out."""
    _spool: tuple[int, int] | None = None
    """Of the pipe between the terminal and the log."""

    @classmethod
    def lay(
        cls, process: ProcessSpec, stdio: Stdio, log: LogWriter | None, *, keep: bool = False
    ) -> Self:
        """Open what a process needs.

        Args:
            process: What will run.
            stdio: The caller's descriptors.
            log: Where output goes that nobody takes.
            keep: The process is made after this call has ended: take the caller's descriptors over.
        """
        self = cls(log, process.terminal_size)
        try:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            self._theirs.append(null)
            if process.terminal:
                self._stdio = ProcessStdio(null, null, null)
                return self
            self._stdio = ProcessStdio(
                stdin=self._given(stdio.stdin, keep)
                if stdio.stdin
                else (self._held_input() if process.keep_input else null),
                stdout=self._output(stdio.stdout, LogStream.STDOUT, null, keep),
                stderr=self._output(stdio.stderr, LogStream.STDERR, null, keep),
            )
        except BaseException:
            self.close()
            raise
        return self

    @property
    def stdio(self) -> ProcessStdio:
        """The three descriptors for the process.

        Raises:
            InvalidState: they were closed.
        """
        if self._stdio is None:
            raise InvalidState("the process's descriptors were closed")
        return self._stdio

    def _given(self, descriptor: Fd, keep: bool) -> int:
        if not keep:
            return descriptor.fileno()
        taken = descriptor.take()
        self._theirs.append(taken)
        return taken

    def _held_input(self) -> int:
        # Open for writing too: it has no end while the process lives, whoever of us does.
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            self._theirs.append(os.open(f"/proc/self/fd/{read_end}", os.O_RDWR | os.O_CLOEXEC))
        finally:
            os.close(read_end)
            os.close(write_end)
        return self._theirs[-1]

    def _output(self, given: Fd | None, stream: LogStream, null: int, keep: bool) -> int:
        if given is not None:
            return self._given(given, keep)
        if self.log is None:
            return null
        read_end, write_end = log_pipe()
        self._ours.append(read_end)
        self._theirs.append(write_end)
        self._sources.append((read_end, stream))
        return write_end

    @classmethod
    def resume(
        cls,
        process: ProcessSpec,
        log: LogWriter | None,
        kept: dict[str, Fd],
        outputs: dict[int, int],
        pid: int,
    ) -> Self:
        """Return the plumbing of a process that another helper has made.

        Args:
            process: What runs.
            log: Where its output goes.
            kept: What is left of `descriptors`, by name; what is used is taken out.
            outputs: As `outputs` said.
            pid: Of the process: what was not kept is opened again where it has it.
        """
        self = cls(log, process.terminal_size)
        if terminal := kept.pop("terminal", None):
            self._master = self._own(terminal)
        if log is None:
            return self
        if self._master is not None:
            self._input = self._own_pipe(kept, "input")
            self._spool = self._own_pipe(kept, "spool")
            self._log_terminal(self._master)
        for stream in (LogStream.STDOUT, LogStream.STDERR):
            inode = outputs.get(stream)
            source = kept.pop(stream.name.lower(), None)
            found = self._own(source) if source else None
            if found is None and inode is not None:
                found = _open_again(pid, stream, inode)
                self._ours += [] if found is None else [found]
            if found is not None:
                self._sources.append((found, stream))
        return self

    def _own(self, descriptor: Fd) -> int:
        self._ours.append(descriptor.take())
        return self._ours[-1]

    def _own_pipe(self, kept: dict[str, Fd], name: str) -> tuple[int, int] | None:
        if name not in kept or f"{name}-end" not in kept:
            return None
        return self._own(kept.pop(name)), self._own(kept.pop(f"{name}-end"))

    def descriptors(self) -> dict[str, int]:
        """Return, by name, what the next helper needs to go on."""
        named = {
            stream.name.lower(): source
            for source, stream in self._sources
            if stream is not LogStream.TERMINAL
        }
        if self._master is not None:
            named["terminal"] = self._master
        if self._input is not None:
            named["input"], named["input-end"] = self._input
        if self._spool is not None:
            named["spool"], named["spool-end"] = self._spool
        return named

    def outputs(self) -> dict[int, int]:
        """Return which of the process's descriptors are the log's pipes, by inode."""
        return {
            int(stream): os.fstat(source).st_ino
            for source, stream in self._sources
            if stream is not LogStream.TERMINAL
        }

    def terminal_arrived(self, master: int) -> None:
        """Take over the master of the process's terminal."""
        self._ours.append(master)
        self._master = master
        if self.terminal_size is not None:
            set_size(master, self.terminal_size)
        if self.log is not None:
            self._log_terminal(master)

    def _log_terminal(self, master: int) -> None:
        os.set_blocking(master, False)
        self._sources.append((master, LogStream.TERMINAL))
        if self._spool is None:
            self._spool = os.pipe2(os.O_CLOEXEC)
            self._ours += self._spool
        if self._input is None:
            self._input = os.pipe2(os.O_CLOEXEC)
            self._ours += self._input
        os.set_blocking(self._input[0], False)

    def resize(self, size: TerminalSize) -> bool:
        """Set the window's size; False if there is no terminal."""
        if self._master is None:
            return False
        set_size(self._master, size)
        return True

    def hand_out(self) -> tuple[Fd | None, Fd | None]:
        """Return new descriptors for the caller: the terminal's master, or the pipe into it."""
        if self._master is None:
            return None, None
        if self._input is not None:
            return None, Fd(os.dup(self._input[1]))
        return Fd(os.dup(self._master)), None

    def made(self) -> None:
        """Close what the process has now: else its readers would never see an end."""
        theirs, self._theirs = self._theirs, []
        for descriptor in theirs:
            os.close(descriptor)
        self._stdio = None

    async def carry(self) -> None:
        """Move output to the log, and the terminal's input to it, until all output has ended."""
        log = self.log
        if log is None or not self._sources:
            await trio.lowlevel.checkpoint()
            return
        async with trio.open_nursery() as nursery:
            if self._master is not None and self._input is not None:
                nursery.start_soon(_feed, self._input[0], self._master)
            async with trio.open_nursery() as outputs:
                for source, stream in self._sources:
                    spool = self._spool if stream is LogStream.TERMINAL else None
                    outputs.start_soon(log.copy, source, stream, spool)
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Close all; twice is no error."""
        self.made()
        ours, self._ours = self._ours, []
        self._sources, self._master, self._input = [], None, None
        self._spool = None
        for descriptor in ours:
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)


def _open_again(pid: int, number: int, inode: int) -> int | None:
    """Open a log's pipe for reading where the process has it, if it is still what it was."""
    path = f"/proc/{pid}/fd/{number}"
    try:
        source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if os.fstat(source).st_ino == inode:
        return source
    os.close(source)
    return None


async def _feed(source: int, terminal: int) -> None:
    """Move what is typed without taking it out of the kernel: nothing is lost with this helper."""
    while True:
        await trio.lowlevel.wait_readable(source)
        await trio.lowlevel.wait_writable(terminal)
        try:
            if not os.splice(source, terminal, 4096, flags=os.SPLICE_F_NONBLOCK):
                return
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno != errno.EINVAL:
                return  # EIO: the terminal's other side is gone
            if not _feed_unspliced(source, terminal):
                return


def _feed_unspliced(source: int, terminal: int) -> bool:
    """Move a little by hand, for a kernel that can't splice to a terminal; False at the end."""
    try:
        typed = os.read(source, 256)  # a terminal that can be written to has room for as much
        return bool(typed) and os.write(terminal, typed) > 0
    except BlockingIOError:
        return True
    except OSError:
        return False
