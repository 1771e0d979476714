"""A client in C, written from the specification alone: calls, a descriptor, a scope, channels."""

from __future__ import annotations

import os
import shutil
import subprocess
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.abc import ReceiveChannel

from container.ipc import Actor, Contract, Fd, NotFound, open_service, stream

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


class Stranger(Contract, name="stranger"):
    @abstractmethod
    async def greet(self, name: str) -> str: ...

    @abstractmethod
    async def write(self, to: Fd) -> None: ...

    @abstractmethod
    async def open(self) -> Fd: ...

    @abstractmethod
    def lease(self, key: str) -> AbstractAsyncContextManager[str]: ...

    @abstractmethod
    def ticks(self, count: int) -> AbstractAsyncContextManager[ReceiveChannel[int]]: ...

    @abstractmethod
    async def total(self, numbers: ReceiveChannel[int]) -> int: ...


class StrangerService(Actor, Stranger):
    def __init__(self, file: Path) -> None:
        self.file = file
        self.log: list[str] = []

    async def greet(self, name: str) -> str:
        if name == "nobody":
            raise NotFound("nobody is here")
        return f"hello {name}"

    async def write(self, to: Fd) -> None:
        os.write(to.fileno(), b"from the service")

    async def open(self) -> Fd:
        return Fd(os.open(self.file, os.O_RDONLY))

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncGenerator[str]:
        self.log.append(f"{key} leased")
        yield f"lease of {key}"
        self.log.append(f"{key} released")

    @stream(capacity=4)
    async def ticks(self, count: int) -> AsyncGenerator[int]:
        for number in range(count):
            yield number

    async def total(self, numbers: ReceiveChannel[int]) -> int:
        return sum([number async for number in numbers])


EXPECTED = """\
hello
reply: hello c
error: not-found: nobody is here
written to the descriptor: from the service
read from the descriptor: a file's text
held: lease of c
reply: hello somebody, while the scope is held
left: clean-up has ended
10 items, 45 in total
the other side counted 210
goodbye
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("c") / "client"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1"]
    subprocess.run(["gcc", *flags, "-o", program, HERE / "client.c"], check=True, timeout=60)
    return program


async def test_a_client_in_c_speaks_the_protocol(client: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file's text")
    service = StrangerService(tmp_path / "file")
    async with open_service(service, at=tmp_path / "s"):
        with trio.fail_after(20):
            done = await trio.run_process(
                [client, tmp_path / "s"], capture_stdout=True, capture_stderr=True, check=False
            )
    assert (done.stderr.decode(), done.stdout.decode()) == ("", EXPECTED)
    assert done.returncode == 0
    assert service.log == ["c leased", "c released"]
