"""The typed dictionary: each accessor, what it refuses and how it says so, bytes, descriptors."""

from __future__ import annotations

import os
import uuid
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
import trio
from attrs import frozen

from container.ipc import (
    Actor,
    Contract,
    DeadlineExceeded,
    Endpoint,
    Fd,
    Incompatible,
    InternalError,
    InvalidArgument,
    NotFound,
    UnknownRoute,
    connection_of,
    in_memory,
)
from container.ipc.message import Message, call_message
from container.ipc.wirevalues import Incoming

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ID = uuid.UUID(int=7)


class Greeter(Contract, name="greeter"):
    """What the tests call by message."""

    @abstractmethod
    async def greet(self, name: str, times: int = 1) -> Greeting: ...
    @abstractmethod
    async def double(self, source: Fd) -> Fd: ...
    @abstractmethod
    async def fail(self) -> None: ...
    @abstractmethod
    async def sleep(self) -> None: ...


@frozen
class Greeting:
    """A result."""

    text: str
    when: datetime = NOW


class GreeterService(Actor, Greeter):
    """Does it."""

    async def greet(self, name: str, times: int = 1) -> Greeting:
        return Greeting(f"hello {name}" * times)

    async def double(self, source: Fd) -> Fd:
        return source.duplicate()

    async def fail(self) -> None:
        raise NotFound("no such name", hint="try another")

    async def sleep(self) -> None:
        await trio.sleep_forever()


@contextmanager
def pipe() -> Iterator[tuple[Fd, Fd]]:
    """Hold both ends of a pipe."""
    reading, writing = os.pipe()
    with Fd(reading) as one, Fd(writing) as two:
        yield one, two


def carried(message: Message) -> Message:
    """Return a message as another process would receive it."""
    body, outgoing = message.encode()
    received = Incoming.of([os.dup(fd) for fd in outgoing.filenos()])
    outgoing.sent(result=False)
    return Message.decode(message.route, body, received)


def full() -> Message:
    """Return a message with a value of each type but descriptors."""
    message = Message("greeter/greet")
    message.set_string("string", "ada")
    message.set_data("data", b"\x00\xff")
    message.set_data_no_copy("view", bytearray(b"big"))
    message.set_bool("bool", True)
    message.set_int64("int64", -(2**63))
    message.set_uint64("uint64", 2**64 - 1)
    message.set_double("double", 1.5)
    message.set_date("date", NOW)
    message.set_uuid("uuid", ID)
    message.set_list("list", [1, "two", [ID]])
    message.set_dict("dict", {"inner": 1, "deep": {"id": ID}})
    return message


def check_full(message: Message) -> None:
    """Check what `full` set."""
    assert message.string("string") == "ada"
    assert message.data("data") == b"\x00\xff"
    assert message.data_no_copy("view") == b"big"
    assert message.bool("bool") is True
    assert message.int64("int64") == -(2**63)
    assert message.uint64("uint64") == 2**64 - 1
    assert message.double("double") == 1.5
    assert message.date("date") == NOW
    assert message.uuid("uuid") == ID
    assert message.list("list") == [1, "two", [ID]]
    assert message.dict("dict").int64("inner") == 1
    assert message.dict("dict").dict("deep").uuid("id") == ID
    assert message.plain_dict("dict") == {"inner": 1, "deep": {"id": ID}}


def test_every_type_is_read_as_it_was_set() -> None:
    check_full(full())


def test_every_type_survives_the_wire() -> None:
    message = carried(full())
    check_full(message)
    assert message.route == "greeter/greet"
    assert message.keys() == full().keys()
    assert "string" in message
    assert "other" not in message
    assert list(message) == list(message.keys())
    assert len(message) == 11


def test_a_constructor_s_values_are_checked_as_a_setter_s() -> None:
    assert Message("a/b", {"x": 1, "y": {"z": None}}).plain_dict("y") == {"z": None}
    with pytest.raises(InvalidArgument, match=r"a/b: x\.y\[1\]: a object can't travel"):
        Message("a/b", {"x": {"y": [1, object()]}})


READERS = ["string", "data", "data_no_copy", "bool", "int64", "uint64", "double", "date", "uuid"]
READERS += ["list", "dict", "plain_dict", "fd"]


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_key_is_said_to_be_missing(reader: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^greeter/greet: who: expected .*, it is missing$"):
        getattr(Message("greeter/greet"), reader)("who")


@pytest.mark.parametrize("reader", READERS)
def test_a_wrong_type_names_key_wanted_and_found(reader: str) -> None:
    message = Message("greeter/greet", {"who": None})
    with pytest.raises(InvalidArgument, match=r"^greeter/greet: who: expected \w+, found nothing$"):
        getattr(message, reader)("who")


@pytest.mark.parametrize(
    ("value", "reader", "found"),
    [
        (True, "int64", "bool"),
        (1, "bool", "int"),
        ("3", "int64", "str"),
        (3, "string", "int"),
        (b"x", "string", "bytes"),
        ("x", "data", "str"),
        (True, "double", "bool"),
        ("2026", "date", "str"),
        (str(ID), "uuid", "str"),
        ({}, "list", "dict"),
        ([], "dict", "list"),
        (3, "fd", "int"),
    ],
)
def test_nothing_is_taken_for_something_like_it(value: object, reader: str, found: str) -> None:
    with pytest.raises(InvalidArgument, match=f"found {found}"):
        getattr(carried(Message("a/b", {"key": value})), reader)("key")


@pytest.mark.parametrize(
    ("setter", "value"),
    [
        ("string", b"x"),
        ("data", "x"),
        ("data_no_copy", "x"),
        ("bool", 1),
        ("int64", True),
        ("uint64", 1.0),
        ("double", "1"),
        ("date", "now"),
        ("uuid", str(ID)),
        ("list", "abc"),
        ("dict", []),
        ("fd", 3),
        ("endpoint", None),
    ],
)
def test_a_setter_refuses_another_type(setter: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=r"a/b: key: expected \w+, found"):
        getattr(Message("a/b"), f"set_{setter}")("key", value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("int64", 2**63), ("int64", -(2**63) - 1), ("uint64", -1), ("uint64", 2**64)],
)
def test_integers_out_of_range_are_refused_by_setters(kind: str, value: int) -> None:
    with pytest.raises(InvalidArgument, match=f"key: {value} is no {kind}"):
        getattr(Message("a/b"), f"set_{kind}")("key", value)


def test_integers_out_of_range_are_refused_by_accessors() -> None:
    message = carried(Message("a/b", {"large": 2**63, "negative": -1}))
    assert message.uint64("large") == 2**63
    assert message.int64("negative") == -1
    with pytest.raises(InvalidArgument, match="no int64"):
        message.int64("large")
    with pytest.raises(InvalidArgument, match="no uint64"):
        message.uint64("negative")


def test_an_integer_is_a_double_too() -> None:
    assert Message("a/b", {"x": 3}).double("x") == 3.0


def test_a_date_travels_as_its_instant_and_needs_a_zone() -> None:
    east = NOW.astimezone(timezone(timedelta(hours=5)))
    assert carried(Message("a/b", {"x": east})).date("x") == NOW
    with pytest.raises(InvalidArgument, match="no time zone"):
        Message("a/b").set_date("x", NOW.replace(tzinfo=None))


def test_a_name_that_is_no_utf8_is_refused_with_advice() -> None:
    with pytest.raises(InvalidArgument, match="no UTF-8") as caught:
        Message("a/b").set_string("path", "\udcff")
    assert caught.value.hint


def test_keys_of_dictionaries_are_strings() -> None:
    with pytest.raises(InvalidArgument, match="str as key"):
        Message("a/b").set_dict("x", {1: 2})  # type: ignore[dict-item]


def test_a_dictionary_inside_itself_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    with pytest.raises(InvalidArgument, match="nested too deeply"):
        Message("a/b").set("x", endless)


def test_what_was_set_is_not_changed_from_outside() -> None:
    values = {"list": [1]}
    message = Message("a/b", {"x": values})
    values["list"].append(2)
    message.dict("x").set("list", [])
    assert message.plain_dict("x") == {"list": [1]}


def test_removing_and_naming_types() -> None:
    message = full()
    assert message.type_of("uuid") == "uuid"
    message.remove("uuid")
    message.remove("uuid")
    assert "uuid" not in message
    assert "string: str" in repr(message)


# --- bytes ------------------------------------------------------------------------------------


def test_borrowed_bytes_are_a_view_of_the_frame_and_copied_bytes_are_not() -> None:
    body = bytearray(Message("a/b", {"x": b"payload"}).encode()[0])
    message = Message.decode("a/b", body, Incoming())
    view, copy = message.data_no_copy("x"), message.data("x")
    assert view.readonly
    body[body.index(b"payload")] = ord("P")
    assert bytes(view) == b"Payload"
    assert copy == b"payload"


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x93", b"\x01", b"\x81\x01\x02", b"\x81\xa1x\xc7", b"\x80\x80"]
)
def test_bytes_that_are_no_dictionary_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument, match="a/b is no message"):
        Message.decode("a/b", body, Incoming())


def test_an_unknown_extension_is_refused() -> None:
    body = msgspec.msgpack.encode({"x": msgspec.msgpack.Ext(99, b"")})
    with pytest.raises(InvalidArgument, match="unknown extension type 99"):
        Message.decode("a/b", body, Incoming())


# --- descriptors ------------------------------------------------------------------------------


def test_a_descriptor_is_handed_out_and_the_others_close() -> None:
    with pipe() as (one, two):
        received = carried(Message("a/b", {"one": one, "deep": [{"two": two}]}))
    handed = received.fd("one")
    received.close()
    received.close()
    os.fstat(handed.fileno())
    handed.close()


def test_descriptors_in_lists_and_dictionaries_are_handed_out() -> None:
    with pipe() as (one, two):
        received = carried(Message("a/b", {"list": [one], "dict": {"two": two}}))
    (first,) = received.list("list")
    second = received.dict("dict").fd("two")
    received.close()
    for fd in (first, second):
        os.fstat(fd.fileno())
        fd.close()


def test_a_descriptor_that_did_not_come_is_refused_and_all_are_closed() -> None:
    for indices in ([1], [0, 0], [-1]):
        body = msgspec.msgpack.encode(
            {"x": [msgspec.msgpack.Ext(2, msgspec.msgpack.encode(i)) for i in indices]}
        )
        reading, writing = os.pipe()
        os.close(writing)
        with pytest.raises(InvalidArgument, match="descriptor"):
            Message.decode("a/b", body, Incoming.of([reading]))


def test_a_closed_descriptor_is_refused_when_encoding() -> None:
    with pipe() as (one, _):
        message = Message("a/b", {"x": one})
    with pytest.raises(InvalidArgument, match="closed or taken"):
        message.encode()


def test_an_endpoint_is_handed_out_for_its_own_contract_only() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    message = Message("a/b")
    message.set_endpoint("x", Endpoint(Greeter, Fd(reading)))
    received = carried(message)
    with pytest.raises(InvalidArgument, match="expected an endpoint of other, found one of"):
        received.endpoint("x", Other)
    with pytest.raises(InvalidArgument, match="expected descriptor, found endpoint"):
        received.fd("x")
    endpoint = received.endpoint("x", Greeter)
    received.close()
    os.fstat(endpoint.fd.fileno())
    endpoint.close()


class Other(Contract, name="other"):
    """Another contract."""


def test_a_received_message_can_be_passed_on_as_it_is() -> None:
    with pipe() as (one, _), Fd(os.dup(one.fileno())) as other:
        message = Message("a/b", {"fd": one, "data": b"x"})
        message.set_endpoint("end", Endpoint(Greeter, Fd(other.take())))
        with carried(message) as relay, carried(relay) as end, end.fd("fd") as fd:
            assert end.data("data") == b"x"
            os.fstat(fd.fileno())
            end.endpoint("end", Greeter).close()


# --- replies and errors -----------------------------------------------------------------------


def test_a_reply_has_the_route_and_nothing_else() -> None:
    assert full().reply().route == "greeter/greet"
    assert len(full().reply()) == 0


def test_an_error_travels_in_a_message() -> None:
    reply = full().reply()
    assert reply.error() is None
    reply.raise_error()
    reply.set_error(NotFound("no such name", hint="try another", details={"name": "ada"}))
    error = carried(reply).error()
    assert isinstance(error, NotFound)
    assert (error.message, error.hint) == ("no such name", "try another")
    assert error.details == {"name": "ada"}
    assert error.provenance[0].route == "greeter/greet"
    with pytest.raises(NotFound):
        carried(reply).raise_error()


def test_a_bug_travels_as_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    reply = Message("a/b")
    reply.set_error(ZeroDivisionError("oops"))
    error = carried(reply).error()
    assert isinstance(error, InternalError)
    assert "oops" not in str(error)
    assert error.details["id"] in caplog.text


# --- calling ----------------------------------------------------------------------------------


async def test_a_message_reaches_a_server_as_a_proxy_s_call_does() -> None:
    async with in_memory(GreeterService()) as greeter:
        message = Message("greeter/greet", {"name": "ada"})
        message.set_int64("times", 2)
        with await call_message(connection_of(greeter), message) as reply:
            assert reply.dict("value").string("text") == "hello adahello ada"
            assert reply.dict("value").date("when") == NOW


async def test_a_server_checks_a_message_as_it_checks_a_proxy() -> None:
    async with in_memory(GreeterService()) as greeter:
        connection = connection_of(greeter)
        for values, match in (
            ({}, "argument 'name' is missing"),
            ({"name": 3}, "greeter/greet: name: expected str, found int"),
            ({"name": "x", "force": True}, "no argument 'force'"),
        ):
            with pytest.raises(InvalidArgument, match=match):
                await call_message(connection, Message("greeter/greet", values))
        with pytest.raises(UnknownRoute):
            await call_message(connection, Message("greeter/dance"))
        assert await greeter.greet("still here") == Greeting("hello still here")


async def test_errors_of_the_handler_are_raised() -> None:
    async with in_memory(GreeterService()) as greeter:
        with pytest.raises(NotFound) as caught:
            await call_message(connection_of(greeter), Message("greeter/fail"))
        assert caught.value.hint == "try another"


async def test_descriptors_travel_both_ways() -> None:
    async with in_memory(GreeterService()) as greeter:
        with pipe() as (reading, writing):
            message = Message("greeter/double")
            message.set_fd("source", writing)
            with await call_message(connection_of(greeter), message) as reply:
                with reply.fd("value") as doubled:
                    os.write(doubled.fileno(), b"through")
            assert os.read(reading.fileno(), 100) == b"through"
            with await call_message(connection_of(greeter), message):
                pass  # what nobody asks for closes with the reply


async def test_a_deadline_travels_with_a_message(autojump_clock: trio.testing.MockClock) -> None:
    async with in_memory(GreeterService()) as greeter:
        with trio.move_on_after(1) as scope:
            await call_message(connection_of(greeter), Message("greeter/sleep"))
        assert scope.cancelled_caught
        assert connection_of(greeter).statistics().pending == 0


def test_a_reply_that_cannot_be_read_is_incompatible() -> None:
    with pytest.raises(Incompatible):
        Message.of_reply("a/b", None, Incoming())
    raw = msgspec.Raw(msgspec.msgpack.encode(msgspec.msgpack.Ext(2, b"\x03")))
    with pytest.raises(Incompatible, match="descriptor 3 did not come"):
        Message.of_reply("a/b", raw, Incoming())


def test_errors_of_deadline_and_bugs_are_classes_of_their_own() -> None:
    message = Message("a/b")
    message.set_error(DeadlineExceeded("late"))
    assert isinstance(message.error(), DeadlineExceeded)
