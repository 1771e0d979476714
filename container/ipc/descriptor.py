"""`Fd`: a file descriptor with an owner.

A descriptor in a message is an ordinary typed field. Three ownerships, one rule each:

- *owned* (`Fd(3)`, and every received one): closed when its owner closes it. Sending it as an
  argument leaves it open here; the receiver gets its own. Returning it as a result gives it away.
- *borrowed* (`Fd.borrow(sys.stderr)`): somebody else's; never closed here.
- *given* (`Fd.give(3)`): closed here as soon as it was sent, or when sending failed.

A received argument that nobody took (`take()`) closes when its call ends.
"""

from __future__ import annotations

import enum
import fcntl
import os
import stat
import warnings
from types import TracebackType
from typing import Protocol, Self


class HasFileno(Protocol):
    """Anything with a descriptor: a file, a socket, an `Fd`."""

    def fileno(self) -> int: ...


class Ownership(enum.Enum):
    """Who closes the descriptor of an `Fd`."""

    OWNED = "owned"
    BORROWED = "borrowed"
    GIVEN = "given"
    RELEASED = "released"
    """Closed, taken or sent away: nothing is left here."""


class FdKind(enum.Enum):
    """What a descriptor must be, judged when it is received: `Annotated[Fd, FdKind.PIPE_READ]`.

    Another one is refused with `InvalidArgument`, before the handler runs.

    Source: inode(7), fcntl(2): F_GETFL, F_GET_SEALS.
    """

    PIPE_READ = "a pipe to read from"
    PIPE_WRITE = "a pipe to write to"
    SOCKET = "a socket"
    FILE = "a regular file"
    SEALED_MEMORY = "a memfd sealed against writes and changes of its size"

    def fits(self, fd: int) -> bool:
        """Is an open descriptor of this kind?"""
        mode = os.fstat(fd).st_mode
        if self is FdKind.SOCKET:
            return stat.S_ISSOCK(mode)
        if self is FdKind.FILE:
            return stat.S_ISREG(mode)
        if self is FdKind.SEALED_MEMORY:
            try:
                return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
            except OSError:
                return False  # no memfd at all
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        one_way = os.O_RDONLY if self is FdKind.PIPE_READ else os.O_WRONLY
        return stat.S_ISFIFO(mode) and access in (one_way, os.O_RDWR)


SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""What keeps a sender from changing memory while its receiver looks at it."""


class Fd:
    """Own one file descriptor.

    Args:
        fd: An open descriptor. The `Fd` owns it from now on.
    """

    __slots__ = ("_fd", "_ownership")

    def __init__(self, fd: int) -> None:
        if fd < 0:
            raise ValueError(f"{fd} is no descriptor")
        self._fd = fd
        self._ownership = Ownership.OWNED

    @classmethod
    def borrow(cls, source: int | HasFileno) -> Self:
        """Refer to a descriptor that somebody else owns and keeps open until the call has ended."""
        self = cls(source if isinstance(source, int) else source.fileno())
        self._ownership = Ownership.BORROWED
        return self

    @classmethod
    def give(cls, fd: int) -> Self:
        """Own a descriptor until it is sent; then it is closed here, however the send ended."""
        self = cls(fd)
        self._ownership = Ownership.GIVEN
        return self

    @property
    def ownership(self) -> Ownership:
        """Who closes it."""
        return self._ownership

    @property
    def closed(self) -> bool:
        """True once it was closed, taken or sent away."""
        return self._ownership is Ownership.RELEASED

    def fileno(self) -> int:
        """Return the descriptor, still owned by this `Fd`.

        Raises:
            ValueError: it was closed, taken or sent away.
        """
        if self._ownership is Ownership.RELEASED:
            raise ValueError("this descriptor was closed or taken")
        return self._fd

    def take(self) -> int:
        """Return the descriptor and give up ownership: the caller closes it.

        A borrowed descriptor is duplicated, so that the caller can close what it gets.
        """
        fd = self.fileno()
        if self._ownership is Ownership.BORROWED:
            fd = os.dup(fd)
        self._ownership = Ownership.RELEASED
        return fd

    def duplicate(self) -> Fd:
        """Return a second `Fd`, owned, of the same open file (close-on-exec)."""
        return Fd(os.dup(self.fileno()))

    def close(self) -> None:
        """Close the descriptor if it is ours. Closing twice does nothing."""
        ownership, self._ownership = self._ownership, Ownership.RELEASED
        if ownership in (Ownership.OWNED, Ownership.GIVEN):
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Fd {self._fd} {self._ownership.value}>"

    def __del__(self) -> None:
        if getattr(self, "_ownership", Ownership.RELEASED) in (Ownership.OWNED, Ownership.GIVEN):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()
