"""Whether a container is started again, and after how long: the rules of restart policies.

Pure: who acts on them is `running`, and at start-up `adoption`.

| policy | it ended | the system starts, and it does not run |
|---|---|---|
| no | stays | stays |
| on-failure[:N] | again if it failed, at most N times since a user started it | stays |
| always | again | again, even if a user had stopped it |
| unless-stopped | again | again, unless a user had stopped it |

What a user has stopped or killed stays so until the system starts. An exit code that can't be known
counts as a failure. Source: "Start containers automatically" in Docker's documentation.
"""

from __future__ import annotations

from attrs import define

from container.contracts.apiserver import Container, ContainerStatus, RestartCondition
from container.contracts.runtime import ExitStatus
from container.ipc import Backoff

BACKOFF = Backoff(first=0.1, longest=60.0, factor=2.0, calm=10.0)

_LASTING = (RestartCondition.ALWAYS, RestartCondition.UNLESS_STOPPED)


def after_end(container: Container, ended: ExitStatus) -> bool:
    """Return whether a container whose run ended so is started again."""
    if container.stopped_by_user or container.auto_remove:
        return False
    policy = container.restart
    match policy.condition:
        case RestartCondition.NO:
            return False
        case RestartCondition.ON_FAILURE:
            left = policy.limit is None or container.restart_count < policy.limit
            return ended.code != 0 and left
        case RestartCondition.ALWAYS | RestartCondition.UNLESS_STOPPED:
            return True


def at_system_start(container: Container) -> bool:
    """Return whether a container that does not run is started when the system starts."""
    if container.status is ContainerStatus.CREATED or container.auto_remove:
        return False  # nobody has ever started it
    policy = container.restart.condition
    return policy is RestartCondition.ALWAYS or (
        policy is RestartCondition.UNLESS_STOPPED and not container.stopped_by_user
    )


def comes_back(container: Container) -> bool:
    """Return whether its policy may start it when the system starts."""
    return container.restart.condition in _LASTING


@define
class RestartRow:
    """Ends in a row, each after a short life."""

    ends: int = 0

    def delay(self, lived: float) -> float:
        """Return the seconds to wait before the next start, after a life of so many seconds."""
        self.ends = 1 if lived >= BACKOFF.calm else self.ends + 1
        return BACKOFF.delay(self.ends)
