"""Health checks of one running container: a command, run in it again and again.

`starting` until a check succeeds or `retries` of them have failed in a row; from then on `healthy`
after each success and `unhealthy` after `retries` failures in a row. A failure in the start period
does not count unless a check has succeeded before. A check whose helper does not answer says
nothing about the container, and does not count either; a paused container is not checked.

Source: `HEALTHCHECK` in the Dockerfile reference.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol, TypeVar

import trio
from attrs import define, field, frozen

from container.contracts.apiserver import HealthCheck, HealthResult, HealthStatus
from container.contracts.runtime import ExitStatus, ProcessSpec, Sandbox, Stdio
from container.ipc import (
    ContainerError,
    Fd,
    InvalidArgument,
    InvalidState,
    NotFound,
    Unavailable,
)
from container.ipc.error_groups import single

INTERVAL = 30.0
TIMEOUT = 30.0
RETRIES = 3
STARTING_INTERVAL = 5.0
"""Seconds between checks in the start period, unless the interval is shorter."""
OUTPUT_MAX = 4096
"""Bytes of a check's output that are kept."""
RESULTS_MAX = 5
LAST_OUTPUT = 0.1
"""Seconds from a check's end to that of its output."""
KILLING = 5.0
"""Seconds for a killed check to be gone."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class CallSandbox(Protocol):
    """Run an operation on the container's sandbox."""

    async def __call__(self, operation: Callable[[Sandbox], Awaitable[T]], /) -> T: ...


@define(eq=False)
class Health:
    """What the checks of one run have said."""

    status: HealthStatus = HealthStatus.STARTING
    failures: int = 0
    """In a row."""
    succeeded: bool = False
    """A check has succeeded in this run: its start period is over."""
    results: deque[HealthResult] = field(factory=lambda: deque[HealthResult](maxlen=RESULTS_MAX))

    def add(self, result: HealthResult, retries: int, *, starting: bool) -> bool:
        """Take a result; return whether the status has changed.

        Args:
            retries: Failures in a row that make it unhealthy.
            starting: The check began within the start period.
        """
        before = self.status
        self.results.append(result)
        if result.code == 0:
            self.failures, self.succeeded, self.status = 0, True, HealthStatus.HEALTHY
        elif self.succeeded or not starting:
            self.failures += 1
            if self.failures >= retries:
                self.status = HealthStatus.UNHEALTHY
        return self.status is not before


@frozen
class Checked:
    """What a health monitor needs of its container."""

    call: CallSandbox
    spec: Callable[[tuple[str, ...], str], ProcessSpec]
    """From a check's command and the process's id to all of the process."""
    paused: Callable[[], Awaitable[bool]]
    """Whether the container is paused."""
    changed: Callable[[HealthStatus], None]
    """Called when the status has changed."""
    clock: Callable[[], datetime]


async def keep_checking(check: HealthCheck, checked: Checked, health: Health, lived: float) -> None:
    """Check one run until cancelled; a check that is running then is killed with its container.

    Args:
        check: All its fields are set.
        checked: The container.
        health: Where the results go.
        lived: Seconds for which it has been running already.
    """
    interval, timeout = check.interval or INTERVAL, check.timeout or TIMEOUT
    since = trio.current_time() - lived
    grace = check.start_period or 0.0
    while True:
        starting = not health.succeeded and trio.current_time() - since < grace
        # Nothing can be waited for: a check is due because time has passed.
        await trio.sleep(min(interval, STARTING_INTERVAL) if starting else interval)
        starting = trio.current_time() - since < grace
        try:
            if await checked.paused():
                continue
            result = await _checked_once(check.command or (), timeout, checked)
        except (ContainerError, OSError) as error:
            _log.info("a health check could not be made: %s", error)
            continue
        if health.add(result, check.retries or RETRIES, starting=starting):
            checked.changed(health.status)


async def _checked_once(command: tuple[str, ...], timeout: float, checked: Checked) -> HealthResult:
    """Run one check.

    Raises:
        ContainerError: it could not be run, or how it ended can't be known.
    """
    process = f"health-{uuid.uuid4().hex[:12]}"
    spec = checked.spec(command, process)
    began = checked.clock()
    read, write = os.pipe2(os.O_CLOEXEC)
    started = False
    ended: ExitStatus | None = None
    output = bytearray()
    async with trio.lowlevel.FdStream(read) as stream:
        with Fd(write) as out, Fd(os.dup(out.fileno())) as error:
            stdio = Stdio(stdout=out, stderr=error)
            try:
                with trio.move_on_after(timeout):
                    await checked.call(lambda it: it.create_process(process, spec, stdio))
                    await checked.call(lambda it: it.start(process))
                    started = True
                    out.close()  # ours: or its end would not be seen
                    error.close()
                    ended = await _ended(process, checked, stream, output)
            except (NotFound, InvalidArgument) as refused:
                code = refused.details.get("exit_status")
                if not isinstance(code, int):
                    raise
                return HealthResult(began, checked.clock(), code, refused.message[:OUTPUT_MAX])
    if ended is None:
        await _kill(process, checked)
    if not started:
        raise Unavailable("the container's helper did not start it in time")
    if ended is None:
        output[:0] = f"it did not end within {timeout:g} s and was killed\n".encode()
    elif ended.code is None:
        raise Unavailable("how it ended is not known")
    text = bytes(output[:OUTPUT_MAX]).decode(errors="replace")
    return HealthResult(began, checked.clock(), None if ended is None else ended.code, text)


async def _ended(
    process: str, checked: Checked, stream: trio.abc.ReceiveStream, output: bytearray
) -> ExitStatus:
    """Return how a check ended, its output collected."""
    ended: ExitStatus | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_collect, stream, output)
            ended = await checked.call(lambda it: it.wait(process))
            # What else has the pipe open may outlive the check.
            nursery.cancel_scope.deadline = trio.current_time() + LAST_OUTPUT
    except BaseExceptionGroup as group:
        raise single(group) from None
    assert ended is not None
    return ended


async def _collect(stream: trio.abc.ReceiveStream, output: bytearray) -> None:
    """Keep the beginning of a check's output; the rest is read and dropped, so that it goes on."""
    while part := await stream.receive_some(65536):
        output += part[: max(0, OUTPUT_MAX - len(output))]


async def _kill(process: str, checked: Checked) -> None:
    with trio.move_on_after(KILLING):
        try:
            await checked.call(lambda it: it.kill(process, "SIGKILL"))
            await checked.call(lambda it: it.wait(process))
        except (InvalidState, NotFound):
            pass  # it ended by itself, or was never made
