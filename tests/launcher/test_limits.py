"""Limits: set from outside, bounded by our own, told when they can't be."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Iterator

import pytest

from container.contracts.launcher import ServiceUnit
from container.launcher.limits import limit, raise_open_files

from .conftest import System, ask, unit


@pytest.fixture
def process() -> Iterator[int]:
    """A process that waits."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def of(pid: int, which: int) -> tuple[int, int]:
    return resource.prlimit(pid, which)


def test_limits_are_set_and_never_above_our_own(process: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    one = ServiceUnit("one", ("one",), open_files=64, core_size=0, oom_score_adjust=300, nice=3)
    limit(one, process, 1024)
    assert of(process, resource.RLIMIT_NOFILE) == (64, hard)
    assert of(process, resource.RLIMIT_CORE)[0] == 0
    with open(f"/proc/{process}/oom_score_adj") as file:
        assert file.read() == "300\n"
    assert os.getpriority(os.PRIO_PROCESS, process) == 3
    limit(ServiceUnit("one", ("one",), open_files=hard * 2), process, 1024)
    assert of(process, resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_limit_that_can_t_be_set_is_told_and_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        limit(ServiceUnit("one", ("one",), nice=3), 2**30, 1024)
    assert "open files of one can't be set" in caplog.text
    assert "nice of one can't be set" in caplog.text


def test_open_files_are_raised_for_us_and_what_we_had_is_told() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = min(before[1], 512)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, before[1]))
    try:
        assert raise_open_files() == lower
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_service_has_its_unit_s_limits_before_its_first_line(system: System) -> None:
    path = await system.launcher.register(unit("one", open_files=77, core_size=0, nice=2))
    found = await ask(path)
    assert found["limits"] == [77, 0]
    assert os.getpriority(os.PRIO_PROCESS, found["pid"]) == 2
