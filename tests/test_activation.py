"""`LISTEN_FDS` as it is received: a socket and what was kept, in a child that has the numbers."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from container.activation import FIRST_LISTEN_FD, handed_over, sort_out
from container.ipc import Fd, InvalidArgument


def in_a_child(descriptors: list[int], names: str | None, check: Callable[[], None]) -> None:
    """Run a check where these descriptors are the numbers from 3 on."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            spare = [os.dup2(fd, 100 + number) for number, fd in enumerate(descriptors)]
            for number, fd in enumerate(spare, FIRST_LISTEN_FD):
                os.dup2(fd, number)
                os.close(fd)
            os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(descriptors)))
            if names is not None:
                os.environ["LISTEN_FDNAMES"] = names
            check()
            assert not [name for name in os.environ if name.startswith("LISTEN_")]
            status = 0
        except BaseException as error:
            print(repr(error), file=sys.__stderr__)
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_socket_comes_first_and_what_was_kept_has_its_names(tmp_path: Path) -> None:
    out, into = os.pipe()
    os.write(into, b"kept")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def check() -> None:
            adopted, kept = sort_out(handed_over())
            assert adopted is not None
            assert adopted.getsockname() == str(tmp_path / "s")
            assert not os.get_inheritable(3)
            assert not os.get_inheritable(4)
            assert list(kept) == ["output"]
            assert os.read(kept["output"].fileno(), 10) == b"kept"

        in_a_child([listener.fileno(), out], "images:output", check)
    os.close(out)
    os.close(into)


def test_a_first_descriptor_that_does_not_listen_was_kept() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def check() -> None:
            adopted, kept = sort_out(handed_over())
            assert adopted is None
            assert [(name, fd.fileno()) for name, fd in kept.items()] == [("pair", 3)]

        in_a_child([ours.fileno()], "pair", check)


def test_descriptors_without_names_are_handed_over_too() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def check() -> None:
            assert [name for name, _ in handed_over()] == ["unknown", "unknown"]

        in_a_child([ours.fileno(), theirs.fileno()], None, check)


def test_of_two_with_one_name_the_last_stays() -> None:
    handed = [("a", Fd(os.open("/dev/null", os.O_RDONLY))) for _ in range(2)]
    (first, second) = [fd for _, fd in handed]
    _, kept = sort_out(handed)
    assert (kept, first.closed) == ({"a": second}, True)
    second.close()


def test_variables_of_another_process_are_unset_and_count_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert handed_over() == []
    assert "LISTEN_PID" not in os.environ


@pytest.mark.parametrize("count", ["-1", "x", "5000"])
def test_a_count_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(InvalidArgument, match="LISTEN_FDS is"):
        handed_over()
