"""Promises of calls: what a caller sees, whatever becomes of its call."""

from __future__ import annotations

import os

import trio

from container.ipc.client import connect_contract, connection_of
from container.ipc.errors import (
    CallCancelled,
    DataLoss,
    DeadlineExceeded,
    Fate,
    InternalError,
    InvalidArgument,
    InvalidState,
    NotFound,
    PeerGone,
)
from container.ipc.testing.promises import (
    Link,
    expecting,
    leaves,
    promise,
    witness,
)
from container.ipc.testing.subject import WHILE, Everything, Subject, Task
from container.ipc.wire.limits import Limits


@promise
async def a_reply_is_the_value(link: Link) -> None:
    async with link.connect() as subject:
        assert await subject.add(1, two=2) == 3


@promise
async def a_value_of_every_type_arrives_as_it_was(link: Link) -> None:
    async with link.connect() as subject:
        assert await subject.echo(Everything.example()) == Everything.example()


@promise
async def a_message_of_any_size_arrives(link: Link) -> None:
    async with link.connect() as subject:
        for size in (0, 1, 65_535, 65_536, 65_537, 3_000_000):
            assert await subject.size(b"x" * size) == size
            assert len(await subject.bytes_of(size)) == size


@promise
async def many_calls_at_once_each_get_their_own_answer(link: Link) -> None:
    async with link.connect() as subject:

        async def call(number: int) -> None:
            assert await subject.add(number, 1) == number + 1

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(call, number)


@promise
async def handlers_of_one_connection_run_at_the_same_time(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(subject.work, Task.WAIT, seen.fd)
                while seen.lines.count("begun") < 5:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert seen.lines.count("ended") == 5


@promise
async def a_large_answer_does_not_hold_up_others(link: Link) -> None:
    async with link.connect() as subject:
        async with trio.open_nursery() as nursery:

            async def large() -> None:
                assert len(await subject.bytes_of(5000000)) == 5000000

            for _ in range(3):
                nursery.start_soon(large)
            for number in range(20):
                assert await subject.add(number, 1) == number + 1


# --- errors -----------------------------------------------------------------------------------


async def _error_of(subject: Subject, task: Task) -> Exception:
    with witness() as seen:
        try:
            await subject.work(task, seen.fd)
        except Exception as error:
            return error
    raise AssertionError(f"{task} raised nothing")


@promise
async def an_error_arrives_typed_with_where_it_came_from(link: Link) -> None:
    async with link.connect() as subject:
        error = await _error_of(subject, Task.NOT_FOUND)
    assert isinstance(error, NotFound)
    assert (error.message, error.hint) == ("no 'alpin'", "did you mean 'alpine'?")
    assert error.details["n"] == 1
    assert [hop.route for hop in error.provenance] == ["container-testing-subject/work"]


@promise
async def a_bug_arrives_as_an_id_and_says_nothing_of_its_values(link: Link) -> None:
    async with link.connect() as subject:
        error = await _error_of(subject, Task.BREAK)
        assert isinstance(error, InternalError)
        assert "id" in error.details
        assert "secret" not in f"{error} {error.hint} {error.details}"
        assert await subject.add(1, 2) == 3


@promise
async def a_group_arrives_as_a_group(link: Link) -> None:
    async with link.connect() as subject:
        error = await _error_of(subject, Task.GROUP)
    assert [type(leaf) for leaf in leaves(error)] == [NotFound, DataLoss]


@promise
async def an_errors_cause_arrives_with_it(link: Link) -> None:
    async with link.connect() as subject:
        error = await _error_of(subject, Task.CAUSE)
    assert isinstance(error.__cause__, DataLoss)


@promise
async def a_handlers_own_cancelled_or_deadline_is_an_error_like_any_other(link: Link) -> None:
    async with link.connect() as subject:
        with trio.CancelScope() as scope:
            assert isinstance(await _error_of(subject, Task.SAY_CANCELLED), CallCancelled)
            assert isinstance(await _error_of(subject, Task.SAY_DEADLINE), DeadlineExceeded)
        assert not scope.cancelled_caught


@promise
async def arguments_of_another_type_are_refused_by_name_and_the_connection_lives(
    link: Link,
) -> None:
    async with link.connect() as subject:
        with expecting(InvalidArgument) as caught:
            await subject.add("1", 2)  # pyright: ignore[reportArgumentType]
        assert "one" in caught.exception.message
        with expecting(TypeError):
            await subject.add(1)  # pyright: ignore[reportCallIssue]
        assert await subject.add(1, 2) == 3


# --- cancellation and deadlines -----------------------------------------------------------------


@promise
async def a_call_in_a_cancelled_scope_does_nothing(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            with trio.CancelScope() as scope:
                scope.cancel()
                await subject.work(Task.RETURN, seen.fd)
            assert scope.cancelled_caught
            await seen.gone()
            assert seen.lines == []
        assert await subject.add(1, 2) == 3


@promise
async def a_cancelled_caller_waits_for_the_end_of_its_handler(link: Link) -> None:
    async with link.connect() as subject:
        for task in (Task.WAIT, Task.CLEAN_UP):
            with witness() as seen:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(subject.work, task, seen.fd)
                    await seen.hears("begun")
                    nursery.cancel_scope.cancel()
                assert seen.lines == ["begun", "ended"]
                await seen.gone()
        assert connection_of(subject).statistics().abandoned == 0
        assert await subject.add(1, 2) == 3


@promise
async def a_caller_that_times_out_waits_for_the_end_of_its_handler(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            with trio.move_on_after(WHILE) as scope:
                await subject.work(Task.CLEAN_UP, seen.fd)
            assert scope.cancelled_caught
            assert seen.lines == ["begun", "ended"]


@promise
async def a_reply_wins_over_the_cancellation_that_it_crosses(link: Link) -> None:
    async with link.connect() as subject:
        value = None
        with witness() as seen:
            with trio.move_on_after(WHILE) as scope:
                value = await subject.work(Task.FINISH, seen.fd)
                await trio.lowlevel.checkpoint()
                raise AssertionError("the cancellation was lost")
        assert value == 42
        assert scope.cancelled_caught


@promise
async def a_failed_clean_up_is_never_hidden_by_the_cancellation(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen, trio.move_on_after(WHILE), expecting(InvalidState) as caught:
            await subject.work(Task.FAIL_TO_CLEAN_UP, seen.fd)
        assert caught.exception.hint == "stop what uses it"


@promise
async def a_handler_that_overstays_the_grace_is_let_go_and_counted(link: Link) -> None:
    async with link.connect(Limits(grace_seconds=WHILE)) as subject:
        with witness() as seen:
            with trio.move_on_after(WHILE) as scope:
                await subject.work(Task.OVERSTAY, seen.fd)
            assert scope.cancelled_caught
            assert connection_of(subject).statistics().abandoned == 1
            assert await subject.add(1, 2) == 3
            await seen.hears("ended")
            await seen.gone()
        assert await subject.add(1, 2) == 3


@promise
async def the_time_that_is_left_travels(link: Link) -> None:
    async with link.connect() as subject:
        with trio.CancelScope(shield=True):  # out of the deadline that the promise has
            assert await subject.time_left() is None
        with trio.fail_after(10):
            left = await subject.time_left()
            assert left is not None
            assert left <= 10.1


# --- ends -------------------------------------------------------------------------------------


@promise
async def a_lost_connection_leaves_the_fate_of_a_sent_call_unknown_and_ends_its_handler(
    link: Link,
) -> None:
    with witness() as seen:
        async with link.faulty() as (subject, transport):
            async with trio.open_nursery() as nursery:

                async def cut() -> None:
                    await seen.hears("begun")
                    transport.faults.close()

                nursery.start_soon(cut)
                with expecting(PeerGone) as caught:
                    await subject.work(Task.WAIT, seen.fd)
                assert caught.exception.fate is Fate.UNKNOWN
            await seen.gone()
            assert seen.lines == ["begun", "ended"]
            with expecting(PeerGone) as caught:
                await subject.add(1, 2)
            assert caught.exception.fate is Fate.NOT_SENT


@promise
async def a_frame_cut_in_the_middle_was_not_sent_and_is_not_handled(link: Link) -> None:
    with witness() as seen:
        async with link.faulty() as (subject, transport):
            transport.faults.close(after=30)
            with expecting(PeerGone):
                await subject.work(Task.RETURN, seen.fd)
        await seen.gone()
        assert seen.lines == []


@promise
async def a_proxy_closed_by_another_task_ends_its_calls_and_their_handlers(link: Link) -> None:
    with witness() as seen:
        async with trio.open_nursery() as nursery:

            async def call(subject: Subject) -> None:
                with expecting(trio.ClosedResourceError):
                    await subject.work(Task.WAIT, seen.fd)

            async with link.connect() as subject:
                nursery.start_soon(call, subject)
                await seen.hears("begun")
        await seen.gone()
        assert seen.lines == ["begun", "ended"]
        with expecting(trio.ClosedResourceError):
            await subject.add(1, 2)


@promise
async def a_cancelled_block_never_hangs(link: Link) -> None:
    with witness() as seen:
        # Reached outside of what is cancelled: a server that stops is another promise.
        async with link.reach() as transport, trio.open_nursery() as nursery:

            async def use() -> None:
                async with connect_contract(Subject, transport) as subject:
                    await subject.work(Task.WAIT, seen.fd)

            nursery.start_soon(use)
            await seen.hears("begun")
            nursery.cancel_scope.cancel()
        await seen.gone()
        assert seen.lines == ["begun", "ended"]


@promise
async def what_a_block_raises_comes_out_bare(link: Link) -> None:
    with expecting(KeyError):
        async with link.connect() as subject:
            await subject.add(1, 2)
            raise KeyError(os.getpid())
