"""Which descriptors a process gets, and what the CLI copies because of it.

- A descriptor of ours that is no terminal goes to the process as it is: nothing is copied.
- A terminal never goes to a container. A pipe goes in its place and the CLI copies; stdout and
  stderr of one terminal share one pipe, which keeps their order.
- Without `-i` there is no stdin (None: `/dev/null`).
- With a log, stdout and stderr are None, and the CLI follows the log.
- With `-t` the process has a terminal of its own: the CLI gets its master, or a pipe into it when
  its output is logged, once the process runs.

With `-t` and a stdin that is no terminal, input is passed on as if it were typed, with end of file
(Ctrl-D) at its end; a warning says so.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Self

import trio

from container.cli.failure import say
from container.cli.streams import Sink, Source, copy
from container.cli.terminal import DetachKeys, RawTerminal, is_terminal, terminal_size
from container.contracts.logs import copy_log
from container.contracts.runtime import LogFiles, Started, Stdio, TerminalSize
from container.ipc import Fd

END_OF_FILE = b"\x04"


class Plumbing:
    """The descriptors of one attached process; a context manager that closes what it opened.

    Args:
        interactive: `-i`: pass stdin on.
        terminal: `-t`: the process has a terminal.
        logged: Its output goes to the container's log, which is followed.
        size: The size that the process's terminal was created with.
    """

    def __init__(
        self,
        *,
        interactive: bool,
        terminal: bool,
        logged: bool,
        size: TerminalSize | None = None,
    ) -> None:
        self.interactive = interactive
        self.terminal = terminal
        self.logged = logged
        self.raw = terminal and interactive and is_terminal(0)
        """The CLI's own terminal is to be raw."""
        self._stack = ExitStack()
        self._given: list[Fd] = []
        self._typed: int | None = None
        self._outputs: list[tuple[int, int]] = []
        self._sources: list[Source] = []
        self._finished = False
        self._raw_terminal = RawTerminal(0)
        self._size = size
        self.stdio = Stdio()
        """What to send."""

    def __enter__(self) -> Self:
        with self._stack:
            if not self.terminal:
                stdin = self._plan_stdin() if self.interactive else None
                stdout, stderr = (None, None) if self.logged else self._plan_outputs()
                self.stdio = Stdio(stdin=stdin, stdout=stdout, stderr=stderr)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.sent()
        self._stack.close()

    def sent(self) -> None:
        """Close our copies of what the process got: only then does the end of a stream arrive."""
        for fd in self._given:
            fd.close()

    def _plan_stdin(self) -> Fd:
        if not is_terminal(0):
            return self._own(0)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._given.append(given := Fd.give(reader))
        self._typed = writer
        self._stack.callback(self._close_typed)
        return given

    def _plan_outputs(self) -> tuple[Fd, Fd]:
        first: tuple[int, Fd] | None = None
        planned: list[Fd] = []
        for number in (1, 2):
            if not is_terminal(number):
                planned.append(self._own(number))
                continue
            device = os.fstat(number).st_rdev
            if first is not None and first[0] == device:
                self._given.append(given := Fd.give(os.dup(first[1].fileno())))
            else:
                reader, writer = os.pipe2(os.O_CLOEXEC)
                self._stack.callback(_close, reader)
                self._outputs.append((reader, number))
                self._given.append(given := Fd.give(writer))
                first = first or (device, given)
            planned.append(given)
        return planned[0], planned[1]

    def _own(self, fd: int) -> Fd:
        """Refer to one of our standard streams; for one that is closed it is `/dev/null`."""
        try:
            os.fstat(fd)
        except OSError:
            null = Fd.give(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            self._given.append(null)
            return null
        return Fd.borrow(fd)

    def _close_typed(self) -> None:
        fd, self._typed = self._typed, None
        if fd is not None:
            _close(fd)

    def started(self, started: Started) -> None:
        """Take the process's terminal."""
        for fd, reads in ((started.terminal, True), (started.terminal_input, False)):
            if fd is None:
                continue
            number = fd.take()
            self._stack.callback(_close, number)
            if reads:
                self._outputs.append((number, 1))
            if self.interactive:
                self._typed = number

    @property
    def detachable(self) -> bool:
        """Whether Ctrl-P Ctrl-Q leaves the container running.

        Only where its output is logged: else nobody would read its terminal, and closing it would
        end the process. Then the keys go to the process, as all others.
        """
        return self.raw and self.logged

    async def copy_input(self) -> bool:
        """Copy what is typed until its end; return whether it ended by the detach keys."""
        if self._typed is None:
            return False
        source, sink = Source(0, ours=False), Sink(self._typed, ours=True)
        keys = DetachKeys() if self.detachable else None
        try:
            while data := await source.receive():
                detached = False
                if keys is not None:
                    data, detached = keys.feed(data)
                await sink.send(data)
                if detached:
                    return True
            if self.terminal:
                if not self.raw:
                    await sink.send(END_OF_FILE)
            else:
                self._close_typed()
        except BrokenPipeError:
            pass  # the process does not read its input any more
        return False

    async def copy_output(self, log: LogFiles | None) -> None:
        """Copy all output: until its end, or what there is once `finish` was called.

        Raises:
            BrokenPipeError: the reader of our stdout is gone.
        """
        with ExitStack() as stack:
            async with trio.open_nursery() as nursery:
                for reader, target in self._outputs:
                    source, sink = Source(reader, ours=True), Sink(target, ours=False)
                    stack.callback(sink.close)
                    self._sources.append(source)
                    nursery.start_soon(copy, source, sink)
                if self._finished:
                    self.finish()
                if log is not None:
                    data, index = log.data.fileno(), log.index.fileno()
                    await copy_log(data, index, 1, 2, following=True, last_run=True)

    def finish(self) -> None:
        """The process has ended: copy what is there and wait for nothing."""
        self._finished = True
        for source in self._sources:
            source.finish()

    def raw_terminal(self) -> AbstractContextManager[None]:
        """Return a context manager that holds our terminal raw, if it is to be."""
        return self._raw_terminal.hold() if self.raw else nullcontext()

    def resized(self) -> TerminalSize | None:
        """Return our terminal's new size, None if it has none; make it raw again if it must be."""
        if self.raw:
            self._raw_terminal.again()
        size = terminal_size(1, 0, 2)
        if size is None or size == self._size:
            return None
        self._size = size
        return size


def _close(fd: int) -> None:
    if trio.lowlevel.in_trio_run():
        trio.lowlevel.notify_closing(fd)
    os.close(fd)


def warn_without_terminal() -> None:
    """Say that `-it` has no terminal to read from; called before anything is made."""
    if not is_terminal(0):
        say("stdin is no terminal: what it holds is passed on as if it were typed")
