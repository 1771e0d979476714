"""What a signal to the command line means, at each moment of an attached process."""

from __future__ import annotations

import os
import signal

import trio.testing

from container.cli.signals import relayed_signals


async def send(*signals: signal.Signals) -> None:
    for number in signals:
        os.kill(os.getpid(), number)
        await trio.testing.wait_all_tasks_blocked()


async def test_a_signal_before_the_start_ends_the_command_line() -> None:
    async with relayed_signals() as relay:
        await send(signal.SIGINT)
        await trio.sleep_forever()
    assert relay.ended_by == signal.SIGINT


async def test_a_signal_while_the_process_is_being_started_is_kept_for_it() -> None:
    passed_on: list[str] = []

    async def kill(name: str) -> None:
        passed_on.append(name)

    async with relayed_signals() as relay:
        relay.starting()
        await send(signal.SIGINT, signal.SIGUSR1)
        assert passed_on == []
        relay.attached(kill, None, raw=False)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(passed_on) == ["SIGINT", "SIGUSR1"]
    assert relay.ended_by is None


async def test_three_in_a_row_end_the_command_line_even_while_it_starts_a_process() -> None:
    async with relayed_signals() as relay:
        relay.starting()
        await send(signal.SIGINT, signal.SIGTERM, signal.SIGINT)
        await trio.sleep_forever()
    assert relay.ended_by == signal.SIGINT
