"""Network namespaces of the kernel: made without a name, found by a process, gone with the last."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from container.ipc import Fd, InvalidArgument, InvalidState, Unsupported
from container.runtime import kernel
from container.runtime.namespace import KernelNamespaces, in_thread

KERNEL = KernelNamespaces()
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@ROOT
def test_a_new_one_has_loopback_alone_which_is_up_for_both_families() -> None:
    with KERNEL.make() as namespace:

        def look() -> tuple[list[tuple[int, str]], list[str]]:
            kernel.enter_namespace(namespace.fileno(), kernel.CLONE_NEWNET)
            names: list[str] = []
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                with socket.socket(family) as listener, socket.socket(family) as caller:
                    listener.bind((address, 0))
                    listener.listen()
                    caller.connect(listener.getsockname())
                    names.append(caller.getpeername()[0])
            return socket.if_nameindex(), names

        assert in_thread(look) == ([(1, "lo")], ["127.0.0.1", "::1"])
        assert os.readlink("/proc/thread-self/ns/net") == os.readlink("/proc/self/ns/net")
        assert os.get_inheritable(namespace.fileno()) is False


@ROOT
def test_processes_find_it_by_its_path_and_it_by_them() -> None:
    with KERNEL.make() as namespace:
        assert not KERNEL.has_processes(namespace)
        enter = ["nsenter", f"--net={KERNEL.path(namespace)}", "--", "cat"]
        with subprocess.Popen(enter, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as inside:
            assert inside.stdin is not None
            assert inside.stdout is not None
            inside.stdin.write(b"x")
            inside.stdin.flush()
            inside.stdout.read(1)
            assert KERNEL.has_processes(namespace)
            with KERNEL.of(inside.pid) as found:
                assert os.path.sameopenfile(found.fileno(), namespace.fileno())
            inside.stdin.close()
        assert not KERNEL.has_processes(namespace)
        with pytest.raises(InvalidState):
            KERNEL.of(inside.pid)


def test_anything_else_is_refused() -> None:
    with KERNEL.of(os.getpid()) as own:
        KERNEL.check(own)
    for path in ("/proc/self/ns/uts", "/dev/null"):
        with (
            Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as other,
            pytest.raises(InvalidArgument, match="no network namespace"),
        ):
            KERNEL.check(other)


def test_who_may_not_make_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(kernel, "unshare", refuse)
    with pytest.raises(Unsupported, match="without being root"):
        KERNEL.make()
