"""Promises of scopes: whatever ends one, its clean-up has ended before its holder's block has."""

from __future__ import annotations

import os

import trio

from container.ipc.client import connection_of
from container.ipc.descriptor import Fd
from container.ipc.errors import AlreadyExists, DataLoss, InvalidState, PeerGone, ScopeEnded
from container.ipc.testing.promises import (
    Link,
    expecting,
    leaves,
    pipe_with,
    promise,
    witness,
)
from container.ipc.testing.subject import WHILE, Hold


@promise
async def a_scope_is_held_for_the_block_and_cleaned_up_before_it_ends(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            async with subject.hold(Hold.PLAIN, seen.fd) as value:
                assert value == 7
                assert await subject.add(1, 2) == 3
                assert seen.lines == ["opening"]
            assert seen.lines == ["opening", "left", "cleaned up"]
            await seen.gone()


@promise
async def scopes_of_several_tasks_are_left_in_any_order(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as one, witness() as two:
            leave = trio.Event()

            async def hold() -> None:
                async with subject.hold(Hold.PLAIN, one.fd):
                    await leave.wait()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold)
                await one.hears("opening")
                async with subject.hold(Hold.PLAIN, two.fd):
                    leave.set()
                    await one.hears("cleaned up")
                    assert two.lines == ["opening"]
            assert one.lines == ["opening", "left", "cleaned up"]
            assert two.lines == ["opening", "left", "cleaned up"]


@promise
async def a_scope_is_entered_once(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            scope = subject.hold(Hold.PLAIN, seen.fd)
            async with scope:
                pass
            with expecting(RuntimeError):
                async with scope:
                    pass


@promise
async def the_blocks_exception_stays_at_home_and_the_body_awaits_its_clean_up(link: Link) -> None:
    async with link.connect() as subject:
        for how in (Hold.PLAIN, Hold.SWALLOW):
            with witness() as seen:
                with expecting(KeyError):
                    async with subject.hold(how, seen.fd):
                        raise KeyError("mine")
                assert seen.lines == ["opening", "failed", "cleaned up"]
                await seen.gone()


@promise
async def an_error_in_clean_up_is_raised_at_the_end_of_the_block(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            with expecting(DataLoss):
                async with subject.hold(Hold.BREAK_CLEAN_UP, seen.fd):
                    pass
            try:
                async with subject.hold(Hold.BREAK_CLEAN_UP, seen.fd):
                    raise KeyError("mine")
            except ExceptionGroup as group:
                kinds = {type(leaf) for leaf in leaves(group)}
            assert kinds == {KeyError, DataLoss}
            await seen.gone()


@promise
async def a_cancelled_holder_waits_for_the_clean_up(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            with trio.CancelScope() as scope:
                async with subject.hold(Hold.PLAIN, seen.fd):
                    scope.cancel()
                    await trio.sleep_forever()
            assert scope.cancelled_caught
            assert seen.lines == ["opening", "cancelled", "cleaned up"]
            await seen.gone()
        assert connection_of(subject).statistics().pending == 0


@promise
async def a_lost_connection_ends_a_scope_and_its_holders_block(link: Link) -> None:
    with witness() as seen:
        async with link.faulty() as (subject, transport):
            interrupted = False
            with expecting(PeerGone):
                async with subject.hold(Hold.PLAIN, seen.fd):
                    transport.faults.close()
                    try:
                        await trio.sleep_forever()
                    finally:
                        interrupted = True
            assert interrupted
        await seen.gone()
        assert seen.lines == ["opening", "cancelled", "cleaned up"]


@promise
async def what_opening_raises_is_raised_and_nothing_is_held(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            with expecting(AlreadyExists):
                async with subject.hold(Hold.REFUSE, seen.fd):
                    raise AssertionError("entered")
            await seen.gone()
        assert connection_of(subject).statistics().pending == 0


@promise
async def a_deadline_bounds_the_opening_and_not_what_was_opened(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            with trio.move_on_after(WHILE) as scope:
                async with subject.hold(Hold.OPEN_SLOWLY, seen.fd):
                    raise AssertionError("entered")
            assert scope.cancelled_caught
            assert seen.lines == ["opening", "not opened"]
        with witness() as seen:
            with trio.move_on_after(WHILE * 4) as scope:
                async with subject.hold(Hold.PLAIN, seen.fd):
                    scope.deadline = trio.current_time() + 30
                    await trio.sleep(WHILE * 6)
                    assert seen.lines == ["opening"]
            assert not scope.cancelled_caught
            assert seen.lines == ["opening", "left", "cleaned up"]


@promise
async def a_scope_in_a_cancelled_block_is_not_held(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            with trio.CancelScope() as scope:
                scope.cancel()
                async with subject.hold(Hold.PLAIN, seen.fd):
                    raise AssertionError("entered")
            assert scope.cancelled_caught
            await seen.gone()
            assert seen.lines in ([], ["opening", "cancelled", "cleaned up"])


@promise
async def a_failure_of_the_callee_reaches_the_block_as_a_childs_would(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            read, write = os.pipe()
            interrupted = False
            with expecting(InvalidState):
                async with subject.hold(Hold.REVOKE, seen.fd, Fd.give(read)):
                    os.close(write)
                    try:
                        await trio.sleep_forever()
                    finally:
                        interrupted = True
            assert interrupted
            assert seen.lines == ["opening", "cleaned up"]
            await seen.gone()


@promise
async def both_failures_are_raised_as_a_group(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            read, write = os.pipe()
            try:
                async with subject.hold(Hold.REVOKE, seen.fd, Fd.give(read)):
                    os.close(write)
                    try:
                        await trio.sleep_forever()
                    finally:
                        raise KeyError("mine")
            except ExceptionGroup as group:
                kinds = {type(leaf) for leaf in leaves(group)}
            assert kinds == {KeyError, InvalidState}


@promise
async def an_end_without_an_error_is_told_too(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            read, write = os.pipe()
            with expecting(ScopeEnded):
                async with subject.hold(Hold.END, seen.fd, Fd.give(read)):
                    os.close(write)
                    await trio.sleep_forever()
            await seen.gone()


@promise
async def a_descriptor_as_value_of_a_scope_belongs_to_its_holder(link: Link) -> None:
    async with link.connect() as subject:
        with pipe_with(b"text") as pipe:
            async with subject.file(pipe) as fd:
                assert os.read(fd.fileno(), 2) == b"te"
            with fd:
                assert os.read(fd.fileno(), 9) == b"xt"
