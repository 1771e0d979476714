"""Run an operation again and again, cancelled at its first, second, ... last step.

```python
for attempt in every_checkpoint():
    with attempt:
        await operation()
    assert nothing_is_left(), attempt
```

A step is what any task of the run does between two of its checkpoints: the operation's own, and
that of whoever answers it. So the cancellation comes at each checkpoint of the operation, and at
each state that the other side can be in meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

import trio

MOST = 2000
"""An operation of more steps does not end."""


class Attempt(trio.abc.Instrument):
    """One run of the operation: a block that is cancelled after `number` steps.

    The cancellation is the block's own: it is caught at its end.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        """Steps until the cancellation, from 1."""
        self.cancelled = False
        """The block was still running by then."""
        self._left = number
        self._scope = trio.CancelScope()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self.cancelled = True
            self._scope.cancel()

    def __enter__(self) -> Self:
        self._scope.__enter__()
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        trio.lowlevel.remove_instrument(self)
        return self._scope.__exit__(kind, error, traceback)

    def __repr__(self) -> str:
        return f"<cancelled after step {self.number}>"


def every_checkpoint(*, most: int = MOST) -> Iterator[Attempt]:
    """Give attempts until one ends before its cancellation came; that one is the last.

    An operation that is not cancelled must end by itself. Order among tasks is Trio's, so that two
    sweeps need not be alike; what is checked must hold of all.

    Args:
        most: Steps beyond which the operation is taken for one that does not end.

    Raises:
        AssertionError: it has more steps.
    """
    for number in range(1, most + 1):
        attempt = Attempt(number)
        yield attempt
        if not attempt.cancelled:
            return
    raise AssertionError(f"the operation has more than {most} steps")
