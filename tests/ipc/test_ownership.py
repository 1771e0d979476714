"""Who closes a descriptor: `Fd` by itself, as an argument, and as a result."""

from __future__ import annotations

import fcntl
import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import pytest

from container.ipc import Actor, Contract, Fd, InternalError, InvalidArgument
from container.ipc.descriptor import Ownership

from .open_files import pipe_with, same_count


class Files(Contract, name="files"):
    @abstractmethod
    async def read(self, source: Fd) -> bytes: ...

    @abstractmethod
    async def keep(self, source: Fd) -> int: ...

    @abstractmethod
    async def open(self, how: str) -> Fd: ...


class FilesService(Actor, Files):
    def __init__(self) -> None:
        self.kept: list[int] = []
        self.mine = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        for fd in (*self.kept, self.mine):
            os.close(fd)
        self.kept.clear()

    async def read(self, source: Fd) -> bytes:
        return os.read(source.fileno(), 100)

    async def keep(self, source: Fd) -> int:
        self.kept.append(source.take())
        return len(self.kept)

    async def open(self, how: str) -> Fd:
        match how:
            case "owned":
                return Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            case "given":
                return Fd.give(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            case "closed":
                fd = Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
                fd.close()
                return fd
            case _:
                return Fd.borrow(self.mine)


@pytest.fixture
def files() -> Iterator[FilesService]:
    service = FilesService()
    yield service
    service.close()


async def test_an_owned_argument_stays_open_here_and_a_given_one_closes(
    link: Any, files: FilesService
) -> None:
    async with link(files) as proxy:
        with pipe_with(b"ab") as fd:
            assert await proxy.read(fd) == b"ab"
            assert fd.ownership is Ownership.OWNED
            given = Fd.give(os.dup(fd.fileno()))
            number = given.fileno()
            assert await proxy.read(given) == b""
            assert given.closed
            with pytest.raises(OSError):
                os.fstat(number)
            with pytest.raises(InvalidArgument, match="was closed or taken"):
                await proxy.read(given)


async def test_a_borrowed_argument_stays_its_owners(link: Any, files: FilesService) -> None:
    async with link(files) as proxy:
        borrowed = Fd.borrow(files.mine)
        assert await proxy.read(borrowed) == b""
        assert borrowed.ownership is Ownership.BORROWED
        os.fstat(files.mine)


@pytest.mark.parametrize("how", ["owned", "given", "borrowed"])
async def test_a_result_belongs_to_its_receiver_and_a_borrowed_one_stays_here_too(
    link: Any, files: FilesService, how: str
) -> None:
    async with link(files) as proxy:
        async with same_count():
            with await proxy.open(how) as fd:
                assert fd.ownership is Ownership.OWNED
                assert os.path.samestat(os.fstat(fd.fileno()), os.stat("/dev/null"))
        os.fstat(files.mine)


async def test_a_result_that_was_closed_already_is_a_bug_of_the_handler(
    link: Any, files: FilesService
) -> None:
    async with link(files) as proxy:
        async with same_count():
            with pytest.raises(InternalError):
                await proxy.open("closed")


async def test_a_taken_argument_outlives_its_call_and_is_closed_on_exec(
    link: Any, files: FilesService
) -> None:
    async with link(files) as proxy:
        with pipe_with(b"later") as fd:
            await proxy.keep(fd)
    (kept,) = files.kept
    assert os.read(kept, 9) == b"later"
    assert fcntl.fcntl(kept, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


async def test_a_result_is_closed_on_exec(link: Any, files: FilesService) -> None:
    async with link(files) as proxy:
        with await proxy.open("owned") as fd:
            assert fcntl.fcntl(fd.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


# --- Fd by itself ---------------------------------------------------------------------------------


def test_an_fd_that_nobody_closed_warns_and_closes() -> None:
    number = os.open("/dev/null", os.O_RDONLY)
    fd = Fd(number)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del fd
    with pytest.raises(OSError):
        os.fstat(number)


def test_taking_from_a_borrowed_fd_duplicates() -> None:
    with open("/dev/null") as file:
        taken = Fd.borrow(file).take()
        assert taken != file.fileno()
        os.close(taken)
        os.fstat(file.fileno())


def test_closing_twice_does_nothing_and_a_negative_number_is_no_descriptor() -> None:
    fd = Fd(os.open("/dev/null", os.O_RDONLY))
    fd.close()
    fd.close()
    assert "released" in repr(fd)
    with pytest.raises(ValueError, match="no descriptor"):
        Fd(-1)
