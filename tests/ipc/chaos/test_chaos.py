"""A tree of processes that are killed, stopped and cut off leaks nothing and hangs nowhere."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.ipc.chaos.__main__ import Chaos, Failed
from tests.ipc.chaos.tree import HopService

SECONDS = 7


async def test_chaos_over_three_hops_leaks_nothing_and_hangs_nowhere(tmp_path: Path) -> None:
    chaos = Chaos(str(tmp_path), random.Random(3))
    await chaos.run(SECONDS)
    assert sum(chaos.blows.values()) >= 2
    for name in ("echo", "read", "hold", "count"):
        assert chaos.outcomes[f"{name}: ok"] > 0, chaos.outcomes


async def test_a_wrong_answer_is_told(tmp_path: Path) -> None:
    class Wrong(HopService):
        async def echo(self, number: int) -> int:
            return number + 1

    chaos = Chaos(str(tmp_path), random.Random(1))
    with pytest.raises(Failed, match="another call"):
        await chaos.operate(Wrong(None), "echo", random.Random(1))


async def test_an_operation_that_ends_too_late_is_told(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    class Late(HopService):
        async def wait(self) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)

    chaos = Chaos(str(tmp_path), random.Random(1))
    only_waits = random.Random(1)
    only_waits.choice = lambda names: "wait"  # type: ignore[assignment]
    with pytest.raises(Failed, match="took 10"):
        await chaos.bounded(Late(None), only_waits)
