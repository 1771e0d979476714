"""Promises of descriptors: whatever becomes of a call, each is claimed or closed.

`Promise.check` counts those of this process; a witness tells of the other's.
"""

from __future__ import annotations

import os

import trio

from container.ipc.client import connection_of
from container.ipc.descriptor import Fd
from container.ipc.errors import (
    ContainerError,
    InternalError,
    InvalidArgument,
    NotFound,
    PeerGone,
    PermissionDenied,
)
from container.ipc.testing.promises import (
    Link,
    expecting,
    pipe_with,
    promise,
    witness,
)
from container.ipc.testing.subject import WHILE, Hold, Streams, Task
from container.ipc.wire.limits import Limits


@promise
async def a_descriptor_arrives_and_closes_with_its_call(link: Link) -> None:
    async with link.connect() as subject:
        with pipe_with(b"hello") as fd:
            assert await subject.read(fd) == b"hello"
        with witness() as seen:
            assert await subject.work(Task.RETURN, seen.fd) == 42
            await seen.gone()


@promise
async def descriptors_arrive_in_their_order_and_come_back(link: Link) -> None:
    async with link.connect() as subject:
        with pipe_with(b"one") as one, pipe_with(b"two") as two:
            back = await subject.swap(Streams(one, (two, one)))
            with back.input, back.outputs[0] as first, back.outputs[1] as second:
                assert os.read(second.fileno(), 9) == b"two"
                assert os.read(first.fileno(), 9) == b"one"


@promise
async def as_many_descriptors_as_a_frame_may_have_arrive(link: Link) -> None:
    async with link.connect() as subject:
        pipes = [os.pipe() for _ in range(31)]
        for index, (_, write) in enumerate(pipes):
            os.write(write, bytes([index]))
            os.close(write)
        with pipe_with(b"") as fd:
            back = await subject.swap(Streams(fd, tuple(Fd.give(read) for read, _ in pipes)))
        back.input.close()
        found: list[int] = []
        for output in back.outputs:
            with output:
                found.append(os.read(output.fileno(), 9)[0])
        assert found == list(reversed(range(31)))


@promise
async def one_descriptor_too_many_is_the_callers_error_and_nothing_leaves(link: Link) -> None:
    async with link.connect() as subject:
        with pipe_with(b"") as fd:
            with expecting(InvalidArgument):
                await subject.swap(Streams(fd, (fd,) * 32))
            given = tuple(Fd.give(os.dup(fd.fileno())) for _ in range(33))
            with expecting(InvalidArgument):
                await subject.swap(Streams(fd, given))
            assert all(each.closed for each in given)
        assert await subject.add(1, 2) == 3


@promise
async def descriptors_arrive_with_any_amount_of_bytes_around_them(link: Link) -> None:
    async with link.connect() as subject:
        for size in (0, 1, 65_535, 65_536, 65_537, 900_000, 3_000_000):
            with pipe_with(b"x") as one, pipe_with(b"y") as two:
                back = await subject.swap(Streams(one, (two,), b"n" * size))
                with back.input, back.outputs[0]:
                    assert len(back.note) == size
                    assert os.read(back.input.fileno(), 9) == b"x"


@promise
async def many_at_once_each_have_their_own_descriptor(link: Link) -> None:
    async with link.connect() as subject:

        async def one(index: int) -> None:
            with pipe_with(str(index).encode()) as fd:
                assert await subject.read(fd) == str(index).encode()

        async with trio.open_nursery() as nursery:
            for index in range(64):
                nursery.start_soon(one, index)


@promise
async def a_descriptor_closes_when_its_handler_raises(link: Link) -> None:
    async with link.connect() as subject:
        for task, kind in ((Task.NOT_FOUND, NotFound), (Task.BREAK, InternalError)):
            with witness() as seen:
                with expecting(kind):
                    await subject.work(task, seen.fd)
                await seen.gone()


@promise
async def a_descriptor_that_was_taken_outlives_its_call(link: Link) -> None:
    async with link.connect() as subject:
        read, write = os.pipe()
        with witness() as seen:
            await subject.keep(Fd.give(read), seen.fd)
            assert await subject.add(1, 2) == 3
            await seen.hears("kept")
            os.write(write, b"x")
            os.close(write)
            await seen.gone()
            assert seen.lines == ["kept", "released"]


@promise
async def a_given_descriptor_is_closed_here_however_the_call_ends(link: Link) -> None:
    async with link.faulty() as (subject, transport):
        with witness() as seen:
            for task in (Task.RETURN, Task.NOT_FOUND):
                given = Fd.give(os.dup(seen.fd.fileno()))
                try:
                    await subject.work(task, given)
                except NotFound:
                    pass
                assert given.closed
            given = Fd.give(os.dup(seen.fd.fileno()))
            with trio.CancelScope() as scope:
                scope.cancel()
                await subject.work(Task.RETURN, given)
            assert given.closed
            transport.faults.close()
            await connection_of(subject).wait_lost()
            given = Fd.give(os.dup(seen.fd.fileno()))
            with expecting(PeerGone):
                await subject.work(Task.RETURN, given)
            assert given.closed
            await seen.gone()


@promise
async def a_result_belongs_to_the_caller_and_is_closed_on_exec(link: Link) -> None:
    async with link.connect() as subject:
        for given in (False, True):
            with witness() as seen:
                with await subject.open(given, seen.fd) as fd:
                    assert not os.get_inheritable(fd.fileno())
                    os.write(fd.fileno(), b"mine\n")
                await seen.gone()
                assert seen.lines == ["begun", "mine"]


@promise
async def a_result_that_crosses_its_cancellation_is_received_or_closed(link: Link) -> None:
    async with link.connect() as subject:
        connection = connection_of(subject)
        with witness() as seen:
            for steps in range(20):
                got: list[Fd] = []

                async def call(got: list[Fd] = got) -> None:
                    got.append(await subject.open(False, seen.fd))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call)
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
                for fd in got:
                    fd.close()
            await seen.gone()
        statistics = connection.statistics()
        assert statistics.descriptors_received == statistics.descriptors_delivered


@promise
async def the_answer_of_an_abandoned_call_closes_its_descriptors(link: Link) -> None:
    async with link.connect(Limits(grace_seconds=WHILE)) as subject:
        with witness() as seen:
            with trio.move_on_after(WHILE):
                await subject.work(Task.OVERSTAY, seen.fd)
            await seen.gone()


# --- endpoints ----------------------------------------------------------------------------------


@promise
async def an_endpoint_is_a_connection_of_its_own(link: Link) -> None:
    async with link.connect() as subject:
        endpoint = await subject.endpoint()
        async with endpoint.connect() as inner:
            assert await inner.add(1, 2) == 3
        # It was used up.
        with expecting(ValueError):
            async with endpoint.connect():
                pass


@promise
async def an_endpoint_outlives_the_connection_that_it_came_on(link: Link) -> None:
    async with link.connect() as subject:
        async with (await subject.endpoint()).connect() as second:
            endpoint = await second.endpoint()
        async with endpoint.connect() as inner:
            assert await inner.add(1, 2) == 3


@promise
async def an_endpoint_may_be_limited_to_some_routes(link: Link) -> None:
    async with link.connect() as subject:
        async with (await subject.endpoint(("add",))).connect() as inner:
            assert await inner.add(1, 2) == 3
            with witness() as seen:
                with expecting(PermissionDenied):
                    await inner.work(Task.RETURN, seen.fd)
                await seen.gone()


@promise
async def an_endpoint_that_nobody_used_may_be_dropped(link: Link) -> None:
    async with link.connect() as subject:
        (await subject.endpoint()).close()
        assert await subject.add(1, 2) == 3


@promise
async def a_cancellation_crosses_three_hops_and_waits_for_the_far_end(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            inner = await subject.endpoint()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(subject.through, inner, Task.CLEAN_UP, seen.fd)
                await seen.hears("begun")
                nursery.cancel_scope.cancel()
            assert seen.lines == ["begun", "ended"]
            await seen.gone()


@promise
async def an_error_names_each_hop_that_it_crossed(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            inner = await subject.endpoint()
            with expecting(NotFound) as caught:
                await subject.through(inner, Task.NOT_FOUND, seen.fd)
            routes = [hop.route.partition("/")[2] for hop in caught.exception.provenance]
            assert routes == ["work", "through"]
            await seen.gone()


@promise
async def a_scope_over_hops_unwinds_from_the_far_end(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            inner = await subject.endpoint()
            async with subject.hold_through(inner, Hold.PLAIN, seen.fd) as value:
                assert value == 7
                await seen.hears("opening")
            assert seen.lines == ["opening", "left", "cleaned up"]
            with expecting(ContainerError):
                async with subject.hold_through(await subject.endpoint(), Hold.REFUSE, seen.fd):
                    pass
            await seen.gone()
