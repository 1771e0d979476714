"""What the descriptors of one process of a container are connected to.

| | a descriptor was given | none: first process, log kept | none: otherwise |
|---|---|---|---|
| stdin | that one | `/dev/null`, or a pipe that we hold (`keep_input`) | the same |
| stdout, stderr | that one | a pipe into the log | `/dev/null` |

With a terminal all three are the terminal, whose master comes to us: its output goes to the log if
one is kept, and its input comes from a pipe whose other end is handed out; else the master itself
is handed out.
"""

from __future__ import annotations

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
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self._theirs.append(read_end)
        self._ours.append(write_end)
        return read_end

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
    def resume(cls, log: LogWriter | None, sources: list[tuple[int, LogStream]]) -> Self:
        """Return the plumbing of a process that another helper has made.

        Args:
            log: Where its output goes.
            sources: Pipes that it writes to; owned.
        """
        self = cls(log)
        self._sources = sources
        self._ours = [source for source, _ in sources]
        return self

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
            os.set_blocking(master, False)
            self._sources.append((master, LogStream.TERMINAL))
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
                    outputs.start_soon(log.copy, source, stream)
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Close all; twice is no error."""
        self.made()
        ours, self._ours = self._ours, []
        self._sources, self._master, self._input = [], None, None
        for descriptor in ours:
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)


async def _feed(source: int, terminal: int) -> None:
    """Copy what is typed; small pieces, so a loop in Python is all it needs."""
    while True:
        await trio.lowlevel.wait_readable(source)
        try:
            typed = os.read(source, 4096)
        except BlockingIOError:
            continue
        if not typed:
            return
        while typed:
            await trio.lowlevel.wait_writable(terminal)
            try:
                typed = typed[os.write(terminal, typed) :]
            except BlockingIOError:
                continue
            except OSError:
                return  # EIO: the terminal's other side is gone
