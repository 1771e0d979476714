"""Leak checks that every test passes through: a test ends with what it began with.

Per test: open descriptors, child processes, and mounts. Per session: processes that inherited
this session's mark, and control groups of ours. What is *not* checked here: tasks, which a nursery
cannot leak.

A difference is looked at again for a moment before it counts, since a worker thread of Trio may
still drop its last reference, and a descriptor in a reference cycle closes when the cycle is
collected.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SETTLE = 2.0
"""Seconds that a leftover has to go away."""

PR_SET_CHILD_SUBREAPER = 36
"""Source: prctl(2)."""

SESSION_MARK = "CONTAINER_TEST_SESSION"
"""Environment variable by which a process of this session is known, whoever its parent is."""

# A shell's background job ignores these, and so would every process that a test signals.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the default would end this process
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)

os.environ["CONTAINER_NETWORK"] = "none"
"""No test touches the interfaces and rules of the machine: those of networks make namespaces of
their own, and name the networks that they mean."""

ALONE = bool(os.environ.get("CI"))
"""In CI no other test of ours makes mounts and control groups at the same time, so that any new one
is this test's."""


ONE_PYTHON = {
    "tests/runtime/test_adoption.py": "real containers: the kernel's and the OCI runtime's doing",
    "tests/runtime/test_conformance.py": "the same",
    "tests/runtime/test_killed.py": "the same, killed at each step",
    "tests/runtime/test_pause.py": "real containers",
    "tests/runtime/test_process.py": "the same",
    "tests/runtime/test_real.py": "the same",
    "tests/runtime/test_unfinished.py": "the same",
    "tests/launcher/test_descriptors.py": "processes killed again and again, with one outcome",
    "tests/launcher/test_killed.py": "the launcher killed at each step",
    "tests/launcher/test_readiness.py": "services in real time; test_supervision has the rules",
    "tests/launcher/test_service.py": "whole systems; test_boot and test_zygote start some, too",
    "tests/launcher/test_systemd.py": "whole systems under a systemd that is played",
    "tests/ipc/spawn/test_stop.py": "processes that do not end in time",
    "tests/ipc/chaos/": "ten seconds of chance over three processes",
    "tests/ipc/conformance/test_breaches.py": "pytest run in pytest: breaches of a transport's own",
    "tests/ipc/conformance/test_how_to.py": "the same, of the page",
    "tests/ipc/wire/test_joined": "long searches through bytes: the wire knows no interpreter",
    "tests/cli/test_terminal.py": "the kernel's terminals",
    "tests/faults/": "faults at each step, and power losses of each boundary",
    "tests/fuzz/": "half a minute of chance, in an interpreter that is built for it",
    "tests/mutations/": "the tests of the tests",
    "tests/benchmarks/": "that every row can be measured",
    "tests/test_documents.py": "what the documents say, typed in",
    "tests/type_tests/": "a type checker, told which Python it is to think of",
}
"""Beginnings of the paths of tests that run with one Python alone (`one_python`), and why.

With each further Python all else runs again: what is computed, the wire and the actors in memory,
and enough processes to see that they start, fork, serve and end.
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what need not run again with another Python."""
    beginnings = tuple(ONE_PYTHON)
    for item in items:
        if item.nodeid.startswith(beginnings) or item.get_closest_marker("system"):
            item.add_marker(pytest.mark.one_python)


def open_descriptors() -> frozenset[str]:
    """Return `number target` of each open descriptor of this process."""
    found: set[str] = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return frozenset(found)


def children() -> frozenset[str]:
    """Return `pid name` of each child of this process, zombies included."""
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/self/task/{task}/children").read_text().split():
                found.add(f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}")
    return frozenset(found)


def mount_points(below: str) -> frozenset[str]:
    """Return the mount points of this mount namespace that start with `below`."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return frozenset(point for line in lines if (point := line.split()[4]).startswith(below))


def control_groups() -> frozenset[str]:
    """Return the control groups that name us, of one hierarchy of each kind."""
    found: set[str] = set()
    for hierarchy in ("/sys/fs/cgroup", "/sys/fs/cgroup/pids"):
        for folder in (*Path(hierarchy).glob("container*"), *Path(hierarchy).glob("container*/*")):
            if folder.is_dir():
                found.add(str(folder))
    return frozenset(found)


def marked_processes() -> frozenset[str]:
    """Return `pid command` of each other live process that inherited this session's mark."""
    mark = f"{SESSION_MARK}={os.environ.get(SESSION_MARK, '')}".encode()
    found: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.add(f"{pid} {command}")
    return frozenset(found)


def adopt_no_orphans() -> None:
    """Undo what a service did that ran in this process: orphans go to the machine's init again."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def left_over(
    look: Callable[[], frozenset[str]], before: frozenset[str], settle: float = SETTLE
) -> list[str]:
    """Return what `look` finds beyond `before`, once it has had `settle` seconds to go."""
    deadline = time.monotonic() + settle
    while True:
        left = look() - before
        if not left or time.monotonic() > deadline:
            return sorted(left)
        gc.collect()
        # Nothing to wait on: what goes away here is another thread's last reference.
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def no_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that leaves a descriptor, a child or a mount behind."""
    below = "/" if ALONE else str(tmp_path_factory.getbasetemp())
    descriptors, processes, mounts = open_descriptors(), children(), mount_points(below)
    yield
    adopt_no_orphans()
    problems = [
        f"{kind} left open: {left}"
        for kind, left in (
            ("children", left_over(children, processes)),
            ("descriptors", left_over(open_descriptors, descriptors)),
            ("mounts", left_over(lambda: mount_points(below), mounts)),
        )
        if left
    ]
    assert not problems, "; ".join(problems)


@pytest.fixture(autouse=True, scope="session")
def nothing_survives_the_session() -> Iterator[None]:
    """Fail the session if a process that it started, or a control group of ours, is left."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        yield
        return
    os.environ[SESSION_MARK] = str(os.getpid())
    groups = control_groups()
    yield
    processes = left_over(marked_processes, frozenset(), settle=10)
    assert not processes, f"processes left running: {processes}"
    if ALONE:
        left = left_over(control_groups, groups)
        assert not left, f"control groups left: {left}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long all of `scripts/test` took, set-up and other interpreters included."""
    started = os.environ.get("CONTAINER_TESTS_STARTED")
    if started:
        terminalreporter.write_line(f"scripts/test took {time.time() - int(started):.0f} s")
