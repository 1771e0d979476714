"""The autojump clock does not jump over a worker thread."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio

from container.testing import hold_autojump_clock


async def test_without_the_hold_a_timeout_fires_over_a_thread(autojump_clock: Any) -> None:
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(60):
            await trio.to_thread.run_sync(time.sleep, 0.05, abandon_on_cancel=True)


async def test_with_the_hold_time_stands_still_while_a_thread_works(autojump_clock: Any) -> None:
    with hold_autojump_clock():
        with trio.fail_after(60):
            await trio.to_thread.run_sync(time.sleep, 0.05, abandon_on_cancel=True)
        assert trio.current_time() == 0
        await trio.sleep(1000)
        assert trio.current_time() == 1000
    await trio.sleep(1000)


async def test_under_a_real_clock_it_does_nothing() -> None:
    with hold_autojump_clock():
        await trio.to_thread.run_sync(time.sleep, 0)
