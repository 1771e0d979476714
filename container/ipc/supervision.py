"""Supervision: run something again when it ends, wait longer each time, and know when to give up.

| state | on | becomes |
|---|---|---|
| STARTING | it says that it is ready, if it was started with `start` | RUNNING |
| RUNNING, STARTING | it returns (policy `ALWAYS`) or fails (`ON_FAILURE`, `ALWAYS`) | BACKOFF |
| | the same, once more than its intensity allows | FAILED, and its owner gets the failure |
| | it fails (policy `NEVER`), or before it was ready for the first time | FAILED, likewise |
| | it returns (`NEVER`, `ON_FAILURE`) | ENDED |
| BACKOFF | its delay is over, or `reset`, or `resume` | STARTING, or RUNNING |
| any | `stop`, or its owner's cancellation | ENDED |

Each end that leads to a restart counts, a return under `ALWAYS` too: what ends at once and for ever
is broken, whatever it says. A cancellation is no failure, and neither are KeyboardInterrupt and
SystemExit: they pass.
"""

from __future__ import annotations

import enum
import logging
import math
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Generic, Self, TypeVar, TypeVarTuple, cast

import trio
from attrs import frozen

from container.ipc.actor import Actor
from container.ipc.error_groups import single
from container.ipc.errors import ContainerError, Unavailable
from container.ipc.nursery import ended_with_block

T = TypeVar("T")
A = TypeVar("A", bound=Actor)
Ts = TypeVarTuple("Ts")

logger = logging.getLogger("container.ipc")


class RestartPolicy(enum.Enum):
    """Which ends lead to a restart."""

    NEVER = "never"
    """None: as in a nursery, but named and watched."""
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


@frozen
class Backoff:
    """How long to wait before a restart: exponentially longer, within bounds.

    Of the delay that is due, `jitter` is the share that chance may take away: a delay is never
    longer than due. It is 0 unless many processes would start again together.
    """

    first: float = 0.1
    """Seconds before the first restart."""
    longest: float = 10.0
    factor: float = 2.0
    jitter: float = 0.0
    calm: float = 30.0
    """Seconds of life after which an end counts as the first one again."""
    draw: Callable[[], float] = random.random
    """Chance, in [0, 1)."""

    def __attrs_post_init__(self) -> None:
        if not (0 <= self.first < math.inf and 0 <= self.longest < math.inf):
            raise ValueError("the delays of a backoff are finite and not negative")
        if not (1 <= self.factor < math.inf and 0 <= self.jitter <= 1):
            raise ValueError("a backoff's factor is at least 1, its jitter between 0 and 1")

    def delay(self, row: int) -> float:
        """Return the seconds to wait after so many ends in a row."""
        try:
            due = min(self.longest, self.first * self.factor ** (row - 1))
        except OverflowError:  # of the power alone: no delay at all stays none
            due = self.longest if self.first else 0.0
        return due * (1 - self.jitter * self.draw()) if self.jitter else due


@frozen
class Intensity:
    """How many restarts in how many seconds are too many: one more than these."""

    restarts: int = 5
    seconds: float = 30.0


BACKOFF = Backoff()
INTENSITY = Intensity()


class SupervisionFailed(Exception):
    """Something was restarted as often as it may be, and ended again; `__cause__` is how.

    No cause: it returned under `ALWAYS`. A cause that was a group still is one.
    """


class SupervisedState(enum.Enum):
    """The life of something supervised; see the module's table."""

    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    ENDED = "ended"
    FAILED = "failed"


@frozen
class SupervisedStatistics:
    """A look at something supervised."""

    name: str
    state: SupervisedState
    restarts: int
    row: int
    """Ends in a row without a calm life between."""
    last_failure: str | None
    """How it failed last."""


class Supervised(Generic[T]):
    """Something that is run again and again; `run` it, or have a `Supervisor` run it.

    It is a `trio.TaskStatus` too: what is run says `started(value)` when it is ready.

    Args:
        work: Run anew for each life.
        name: In logs and statistics.
        restart: Which ends lead to a restart.
        backoff: How long each waits.
        intensity: When to give up; None never does.
    """

    def __init__(
        self,
        work: Callable[[], Awaitable[object]],
        *,
        name: str,
        restart: RestartPolicy = RestartPolicy.ON_FAILURE,
        backoff: Backoff = BACKOFF,
        intensity: Intensity | None = INTENSITY,
    ) -> None:
        self.name = name
        self.state = SupervisedState.STARTING
        self.restarts = 0
        self.last_failure: Exception | None = None
        self._work = work
        self._policy = restart
        self._backoff = backoff
        self._intensity = intensity
        self._announce: trio.TaskStatus[Supervised[T]] | None = None
        self._says_ready = False
        self._was_ready = False
        self._value: T | None = None
        self._began = 0.0
        self._row = 0
        self._ends: deque[float] = deque()
        self._again = trio.Event()
        self._changed = trio.Event()
        self._scope = trio.CancelScope()

    # --- its owner's side ---

    @property
    def over(self) -> bool:
        """Whether it will not run again."""
        return self.state in (SupervisedState.ENDED, SupervisedState.FAILED)

    @property
    def row(self) -> int:
        """Ends in a row; 0 once it has lived for the calm time."""
        running = self.state in (SupervisedState.STARTING, SupervisedState.RUNNING)
        if running and trio.current_time() - self._began >= self._backoff.calm:
            return 0
        return self._row

    async def wait_started(self) -> T:
        """Wait until it is ready, in whichever life, and return what it is ready with.

        Raises:
            Unavailable: it has ended for good.
        """
        await trio.lowlevel.checkpoint()
        while self.state is not SupervisedState.RUNNING:
            if self.over:
                raise Unavailable(f"{self.name} has ended") from self.last_failure
            await self._changed.wait()
        return cast("T", self._value)

    async def wait(self) -> None:
        """Wait until it has ended for good, however it did."""
        await trio.lowlevel.checkpoint()
        while not self.over:
            await self._changed.wait()

    def reset(self) -> None:
        """Forget its ends; a restart that waits for its delay comes now."""
        self._row = 0
        self._ends.clear()
        self._again.set()

    def resume(self) -> None:
        """Have a restart that waits for its delay come now; its ends count as before."""
        self._again.set()

    async def stop(self) -> None:
        """Cancel it for good; return once it has ended. Not for use by the work itself."""
        self._scope.cancel()
        await self.wait()

    def statistics(self) -> SupervisedStatistics:
        """Return a frozen look."""
        failure = None if self.last_failure is None else repr(self.last_failure)
        return SupervisedStatistics(self.name, self.state, self.restarts, self.row, failure)

    # --- the work's side ---

    def started(self, value: T | None = None) -> None:
        """Say that this life is ready; called by the work, as of any `trio.TaskStatus`."""
        if self._announce is not None and not self._was_ready:
            self._announce.started(self)
        self._was_ready = True
        self._value = value
        self._become(SupervisedState.RUNNING)

    def calm(self) -> None:
        """Have this life count as a calm one: its end is the first of a row; called by the work."""
        self._row = 0

    def announcing(self, task_status: trio.TaskStatus[Supervised[T]]) -> Self:
        """Have each life say that it is ready, and the first one tell this status of it."""
        self._says_ready, self._announce = True, task_status
        return self

    # --- running it ---

    async def run(self) -> Any:
        """Run the work by its policy until it has ended for good. May be called once.

        Returns:
            What the work returned last; None when it was stopped.

        Raises:
            SupervisionFailed: it ended more often than its intensity allows.
            Exception: its failure itself, if nothing is restarted after it.
        """
        try:
            with self._scope:
                result = await self._live()
                self.state = SupervisedState.ENDED
                return result
            self.state = SupervisedState.ENDED
        except BaseException as error:
            failed = isinstance(error, Exception)
            self.state = SupervisedState.FAILED if failed else SupervisedState.ENDED
            raise
        finally:
            self._value = None
            self._notify()

    async def _live(self) -> Any:
        while True:
            self._began = trio.current_time()
            self._become(SupervisedState.STARTING if self._says_ready else SupervisedState.RUNNING)
            failure: Exception | None = None
            try:
                result = await self._work()
                if self._policy is not RestartPolicy.ALWAYS:
                    return result
            except Exception as error:
                failure = self.last_failure = error
                never_ready = self._says_ready and not self._was_ready
                if self._policy is RestartPolicy.NEVER or never_ready:
                    raise
            delay = self._count(failure)
            _log_end(self.name, failure, delay)
            self._again = trio.Event()
            self._become(SupervisedState.BACKOFF)
            with trio.move_on_after(delay):
                await self._again.wait()
            self.restarts += 1

    def _count(self, failure: Exception | None) -> float:
        """Count an end; return the delay until the next life."""
        now = trio.current_time()
        self._row = 1 if now - self._began >= self._backoff.calm else self._row + 1
        if self._intensity is not None:
            self._ends.append(now)
            while self._ends[0] < now - self._intensity.seconds:
                self._ends.popleft()
            if len(self._ends) > self._intensity.restarts:
                raise SupervisionFailed(
                    f"{self.name} ended {len(self._ends)} times "
                    f"within {self._intensity.seconds:g} s"
                ) from failure
        return self._backoff.delay(self._row)

    def _become(self, state: SupervisedState) -> None:
        self.state = state
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def _log_end(name: str, failure: Exception | None, delay: float) -> None:
    if failure is None:
        logger.warning("%s ended; again in %.3g s", name, delay)
        return
    # A bug is shown with its traceback; an error that is a value of a contract says it all itself.
    cause = single(failure)
    bug = None if isinstance(cause, ContainerError) else failure
    told = str(cause) or repr(cause)
    logger.warning("%s failed: %s; again in %.3g s", name, told, delay, exc_info=bug)


@frozen
class SupervisorStatistics:
    """A look at a supervisor."""

    children: tuple[SupervisedStatistics, ...]
    """Those that have not ended for good, in the order of their starts."""


class Supervisor:
    """Children that live at most as long as its block, each restarted by itself (one for one).

    Made by `open_supervisor`. Children that must fall together are one child with a nursery; one
    that needs another is started inside it. Both are restarted as a whole.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._children: list[Supervised[Any]] = []

    def start_soon(
        self,
        work: Callable[[*Ts], Awaitable[object]],
        *args: *Ts,
        name: str | None = None,
        restart: RestartPolicy = RestartPolicy.ON_FAILURE,
        backoff: Backoff = BACKOFF,
        intensity: Intensity | None = INTENSITY,
    ) -> Supervised[None]:
        """Start a child without waiting for it; it is taken for ready at once.

        Args:
            work: Run anew for each life, with these arguments.
            args: Positional arguments.
            name: None takes the function's.
            restart: Which ends lead to a restart.
            backoff: How long each waits.
            intensity: When to give up; None never does.
        """
        child = Supervised[None](
            partial(work, *args),
            name=name or _name_of(work),
            restart=restart,
            backoff=backoff,
            intensity=intensity,
        )
        self._children.append(child)
        self._nursery.start_soon(self._run, child, name=child.name)
        return child

    async def start(
        self,
        work: Callable[..., Awaitable[object]],
        *args: object,
        name: str | None = None,
        restart: RestartPolicy = RestartPolicy.ON_FAILURE,
        backoff: Backoff = BACKOFF,
        intensity: Intensity | None = INTENSITY,
    ) -> Supervised[Any]:
        """Start a child and return once it is ready; it gets `task_status`, as of `Nursery.start`.

        A child that fails before it was ever ready is not restarted: somebody is here to hear of
        it. Cancelled, the child is cancelled.

        Args:
            work: Run anew for each life; says `task_status.started(value)` in each.
            args: Positional arguments.
            name: None takes the function's.
            restart: Which ends lead to a restart.
            backoff: How long each waits.
            intensity: When to give up; None never does.

        Raises:
            Exception: what it failed with before it was ready.
        """
        child = Supervised[Any](
            lambda: work(*args, task_status=child),
            name=name or _name_of(work),
            restart=restart,
            backoff=backoff,
            intensity=intensity,
        )
        self._children.append(child)
        await self._nursery.start(self._run_ready, child, name=child.name)
        return child

    async def start_actor(
        self,
        factory: Callable[[], A],
        *,
        name: str | None = None,
        restart: RestartPolicy = RestartPolicy.ON_FAILURE,
        backoff: Backoff = BACKOFF,
        intensity: Intensity | None = INTENSITY,
    ) -> Supervised[A]:
        """Start an actor, anew for each life, and return once it is open.

        It fails when a task in its nursery does. `wait_started` returns the one that lives now.

        Args:
            factory: Makes one.
            name: None takes the factory's.
            restart: Which ends lead to a restart.
            backoff: How long each waits.
            intensity: When to give up; None never does.

        Raises:
            Exception: what it failed with before it was open.
        """

        async def live(*, task_status: trio.TaskStatus[A]) -> None:
            async with factory() as actor:
                task_status.started(actor)
                await trio.sleep_forever()

        return await self.start(
            live,
            name=name or _name_of(factory),
            restart=restart,
            backoff=backoff,
            intensity=intensity,
        )

    def statistics(self) -> SupervisorStatistics:
        """Return a frozen look."""
        return SupervisorStatistics(tuple(child.statistics() for child in self._children))

    async def _run(self, child: Supervised[Any]) -> None:
        try:
            await child.run()
        finally:
            self._children.remove(child)

    async def _run_ready(
        self, child: Supervised[Any], *, task_status: trio.TaskStatus[Supervised[Any]]
    ) -> None:
        await self._run(child.announcing(task_status))


def _name_of(work: Callable[..., object]) -> str:
    while isinstance(work, partial):
        work = cast("Callable[..., object]", work.func)
    return getattr(work, "__qualname__", None) or repr(work)


@asynccontextmanager
async def open_supervisor() -> AsyncGenerator[Supervisor]:
    """Hold a supervisor; its children are cancelled when the block ends, however it ends.

    Raises:
        BaseExceptionGroup: a child was given up (`SupervisionFailed`) or failed without a restart:
            the block and the other children were cancelled. What the block raised is in it too.
    """
    async with ended_with_block() as nursery:
        yield Supervisor(nursery)
