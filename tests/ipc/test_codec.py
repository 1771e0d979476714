"""What a contract's values become on the wire, what is refused, and the sentence that says so."""

from __future__ import annotations

import os
import uuid
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

import attrs
import msgspec
import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from container.ipc import (
    Contract,
    ContractError,
    Endpoint,
    Fd,
    Incompatible,
    InvalidArgument,
)
from container.ipc.codec import Incoming, Outgoing, codecs_of, encode
from container.ipc.wirevalues import WireDescriptor

from .codecs import (
    ID,
    NOW,
    Colour,
    Level,
    Mode,
    Port,
    Who,
    codec,
    received,
    refusal,
    there_and_back,
)


@frozen
class Tree:
    """A class that contains itself."""

    name: str
    children: tuple[Tree, ...] = ()


@frozen
class Stdio:
    """Descriptors in a class."""

    stdin: Fd | None = None
    more: tuple[Fd, ...] = ()
    named: dict[str, Fd] = field(factory=dict[str, Fd])


@frozen
class Small:
    """A class with a rule of its own."""

    size: int = field(validator=attrs.validators.lt(10))


@frozen
class Wider(Port):
    """A port, and what is no one else's business."""

    password: str = ""


class Other(Contract, name="other"):
    """The contract of endpoints."""

    @abstractmethod
    async def nothing(self) -> None: ...


@contextmanager
def null() -> Iterator[Fd]:
    """Hold a descriptor."""
    with Fd(os.open("/dev/null", os.O_RDWR)) as fd:
        yield fd


# --- what fits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (str, "text"),
        (bytes, b"\x00\xff"),
        (bool, True),
        (int, -(2**63)),
        (int, 2**64 - 1),
        (float, 1.5),
        (datetime, NOW),
        (uuid.UUID, ID),
        (type(None), None),
        (str | None, None),
        (str | None, "text"),
        (int | str, "text"),
        (int | str, 3),
        (Port | str, Port("a")),
        (Port | None, None),
        (Colour, Colour.BLUE),
        (Level, Level.HIGH),
        (Mode, Mode.FAST),
        (Literal["a", 1], 1),
        (tuple[str, ...], ("a", "b")),
        (tuple[str, int], ("a", 1)),
        (tuple[()], ()),
        (list[uuid.UUID], [ID]),
        (set[int], {1, 2}),
        (frozenset[Colour], frozenset({Colour.RED})),
        (dict[str, tuple[int, ...]], {"a": (1, 2)}),
        (dict[int, datetime], {1: NOW}),
        (dict[Colour, int], {Colour.RED: 1}),
        (Who, Who("ada", (Port("a"), Port("b", 1)), {"x": Port("c")})),
        (Tree, Tree("a", (Tree("b", (Tree("c"),)), Tree("d")))),
        (Small, Small(9)),
        (list[str], ["a"]),
        (list[Port], [Port("a"), Port("b", 1)]),
        (dict[str, list[int | None]], {"a": [1, None]}),
    ],
)
def test_a_value_arrives_as_it_was_sent(annotation: Any, value: object) -> None:
    made = there_and_back(annotation, value)
    assert made == value
    assert type(made) is type(value)


def test_a_missing_field_takes_its_default() -> None:
    assert received(Who, {"name": "ada"}) == Who("ada")
    assert received(Port, {"host": "a"}).number == 80


def test_an_integer_is_a_float_too() -> None:
    made = received(float, 3)
    assert (made, type(made)) == (3.0, float)


def test_a_date_arrives_in_utc() -> None:
    east = NOW.astimezone(timezone(timedelta(hours=5)))
    assert there_and_back(datetime, east).utcoffset() == timedelta(0)


# --- what does not ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "value", "sentence"),
    [
        (int, "3", "who: expected int, found str"),
        (str, 3, "who: expected str, found int"),
        (int, True, "who: expected int, found bool"),
        (bool, 1, "who: expected bool, found int"),
        (int, 1.0, "who: expected int, found float"),
        (float, "1", "who: expected float, found str"),
        (float, True, "who: expected float, found bool"),
        (str, b"x", "who: expected str, found bytes"),
        (bytes, "x", "who: expected bytes, found str"),
        (str, None, "who: expected str, found nothing"),
        (datetime, "2026-01-02", "who: expected datetime, found str"),
        (datetime, 1700000000, "who: expected datetime, found int"),
        (uuid.UUID, str(ID), "who: expected uuid, found str"),
        (tuple[str, ...], "abc", "who: expected list, found str"),
        (list[str], {"a": 1}, "who: expected list, found dict"),
        (set[str], "abc", "who: expected list, found str"),
        (tuple[str, int], ["a"], "who: expected list of 2, found list"),
        (tuple[str, int], ["a", "b"], "who[1]: expected int, found str"),
        (dict[str, int], [], "who: expected dict, found list"),
        (dict[str, int], {"a": "b"}, "who['a']: expected int, found str"),
        (dict[str, int], {1: 2}, "who[1]: expected str, found int"),
        (Colour, "green", "who: 'green' is none of 'red', 'blue'"),
        (Colour, "RED", "who: 'RED' is none of 'red', 'blue'"),
        (Colour, ["red"], "who: ['red'] is none of 'red', 'blue'"),
        (Level, 3, "who: 3 is none of 1, 2"),
        (Level, True, "who: True is none of 1, 2"),
        (Level, "1", "who: '1' is none of 1, 2"),
        (Mode, "slow", "who: 'slow' is none of 'fast'"),
        (Literal["a", 1], True, "who: True is none of 'a', 1"),
        (Literal["a"], "b", "who: 'b' is none of 'a'"),
        (str | None, 3, "who: expected str, found int"),
        (int | str, None, "who: expected int or str, found nothing"),
        (Port | int, "x", "who: expected Port or int, found str"),
        (Port, "abc", "who: expected Port, found str"),
        (Port, ["a", 1], "who: expected Port, found list"),
        (Port, {}, "who.host: missing"),
        (Port, {"host": 3}, "who.host: expected str, found int"),
        (Port, {"host": "a", "number": "80"}, "who.number: expected int, found str"),
        (Port, {"host": "a", "tls": True}, "who: unknown field 'tls'"),
        (Port, {"host": "a", 1: 2}, "who: unknown field 1"),
        (
            Who,
            {"name": "a", "ports": [{"host": "b"}, {"host": 3}]},
            "who.ports[1].host: expected str, found int",
        ),
        (Who, {"name": "a", "ports": [{}]}, "who.ports[0].host: missing"),
        (
            Who,
            {"name": "a", "labels": {"x": {"host": "b", "no": 1}}},
            "who.labels['x']: unknown field 'no'",
        ),
        (
            Tree,
            {"name": "a", "children": [{"name": "b", "children": [{"name": 1}]}]},
            "who.children[0].children[0].name: expected str, found int",
        ),
        (tuple[tuple[int, ...], ...], [[1], [2, "x"]], "who[1][1]: expected int, found str"),
        (set[str], [1], "who[0]: expected str, found int"),
        (Fd, 3, "who: expected descriptor, found int"),
        (Fd | None, 3, "who: expected descriptor, found int"),
        (Endpoint[Other], {}, "who: expected endpoint, found dict"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_place(
    annotation: Any, value: object, sentence: str
) -> None:
    assert refusal(annotation, value) == f"greeter/greet: {sentence}"


def test_a_rule_of_the_class_itself_is_said_with_its_place() -> None:
    assert "'size' must be < 10" in refusal(tuple[Small, ...], [{"size": 10}])


def test_the_first_of_several_faults_stands_for_all() -> None:
    assert refusal(Port, {"host": 1, "number": "x"}).endswith("who.host: expected str, found int")


def test_a_huge_value_is_not_repeated_in_full() -> None:
    assert len(refusal(Colour, "x" * 100_000)) < 300
    assert len(refusal(Port, {"host": "a", "x" * 100_000: 1})) < 300


def test_arguments_that_are_unknown_or_missing_are_named() -> None:
    it = codec(str)
    for body, sentence in (
        ({}, "greeter/greet: argument 'who' is missing"),
        ({"who": "x", "force": True}, "greeter/greet has no argument 'force'"),
        ({"who": "x", 3: True}, "greeter/greet has no argument 3"),
        ([], "greeter/greet: expected a dict of arguments, found list"),
        (None, "greeter/greet: expected a dict of arguments, found nothing"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            it.arguments(msgspec.Raw(msgspec.msgpack.encode(body)), Incoming())
        assert caught.value.message == sentence


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x81\xa3who", b"\x81\xa3who\xa1\xff", b"\x81\x80\x01", b"\x91" * 100_000],
)
def test_bytes_that_are_no_message_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument, match="the arguments are no message"):
        codec(str).arguments(msgspec.Raw(body), Incoming())


def test_an_unknown_extension_is_refused() -> None:
    assert "unknown extension type 99" in refusal(str, msgspec.msgpack.Ext(99, b""))


def test_deep_nesting_is_refused_where_it_is_deep() -> None:
    deep: dict[str, Any] = {"name": "leaf"}
    for _ in range(400):
        deep = {"name": "x", "children": [deep]}
    assert "nested too deeply" in refusal(Tree, deep)


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_arguments_or_an_invalid_argument(body: bytes) -> None:
    for raw in (body, b"\x81\xa3who" + body):
        try:
            codec(Who).arguments(msgspec.Raw(raw), Incoming())
        except InvalidArgument:
            pass
        try:
            codec(Who, Who).result_of(msgspec.Raw(body), Incoming())
        except Incompatible:
            pass


# --- what a caller can't send -----------------------------------------------------------------


def sending(annotation: Any, value: object) -> str:
    """Return what the caller who passes `value` is told."""
    it, outgoing = codec(annotation), Outgoing()
    with pytest.raises(InvalidArgument) as caught:
        encode(it.lower(it.bind((value,), {})), outgoing, "greeter/greet")
    return caught.value.message


def test_a_date_without_a_zone_is_the_caller_s_error() -> None:
    assert "greeter/greet: who: 2026" in sending(datetime, NOW.replace(tzinfo=None))
    assert "has no time zone" in sending(datetime, NOW.replace(tzinfo=None))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_an_integer_out_of_range_is_the_caller_s_error(value: int) -> None:
    assert sending(int, value).startswith("greeter/greet: ")


def test_text_that_is_no_utf8_is_the_caller_s_error() -> None:
    assert "surrogates" in sending(str, "\udcff")


def test_what_can_t_travel_is_the_caller_s_error() -> None:
    assert "a object can't travel" in sending(str, object())


def test_a_value_inside_itself_is_the_caller_s_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "nested too deeply" in sending(str, endless)


def test_a_closed_descriptor_is_the_caller_s_error() -> None:
    with null() as fd:
        pass
    assert "closed or taken" in sending(Fd, fd)


def test_an_endpoint_twice_in_one_message_is_the_caller_s_error() -> None:
    with null() as fd:
        endpoint = Endpoint(Other, fd)
        assert "twice" in sending(tuple[Endpoint[Other], ...], (endpoint, endpoint))


def test_what_a_subclass_adds_stays_at_home() -> None:
    for annotation, value in (
        (Port, Wider("a", 1, "secret")),
        (tuple[Port, ...], (Wider("a", 1, "secret"),)),
        (Who, Who("x", (Wider("a", 1, "secret"),))),
    ):
        it = codec(annotation, annotation)
        assert b"secret" not in encode(it.lower([value]), Outgoing(), "greeter/greet")
        assert b"secret" not in it.result(value, Outgoing())
        assert there_and_back(annotation, value) != value


# --- replies ----------------------------------------------------------------------------------


def replied(annotation: Any, value: object, descriptors: tuple[int, ...] = ()) -> Any:
    """Return a result as a caller gets it when the peer replies with `value`."""
    incoming = Incoming.of(descriptors)
    try:
        raw = msgspec.Raw(msgspec.msgpack.encode(value))
        return codec(str, annotation).result_of(raw, incoming)
    finally:
        incoming.close_unclaimed()


def test_a_reply_ignores_fields_that_are_not_known() -> None:
    value = {"host": "a", "tls": True, "deep": {"x": [1]}}
    assert replied(Port, value) == Port("a")
    assert replied(tuple[Port, ...], [value]) == (Port("a"),)


def test_a_reply_of_another_type_is_incompatible() -> None:
    with pytest.raises(Incompatible) as caught:
        replied(Who, {"name": "a", "ports": [{"host": 3}]})
    assert caught.value.message == (
        "the reply of greeter/greet can't be read: ports[0].host: expected str, found int"
    )


@pytest.mark.parametrize("raw", [None, b"", b"\xc1"])
def test_a_reply_that_is_no_message_is_incompatible(raw: bytes | None) -> None:
    with pytest.raises(Incompatible, match="greeter/greet"):
        codec(str, str).result_of(None if raw is None else msgspec.Raw(raw), Incoming())


def test_a_descriptor_in_a_field_that_is_ignored_is_closed() -> None:
    with null() as fd:
        extra = {"host": "a", "extra": msgspec.msgpack.Ext(2, b"\x00")}
        assert replied(Port, extra, (os.dup(fd.fileno()),)) == Port("a")


# --- descriptors and endpoints ----------------------------------------------------------------


def test_descriptors_are_found_wherever_they_are() -> None:
    with null() as fd:
        made = there_and_back(Stdio, Stdio(fd, (fd, Fd.borrow(fd)), {"x": fd}))
    fds = [made.stdin, *made.more, made.named["x"]]
    assert len({fd.fileno() for fd in fds}) == 4
    for fd in fds:
        os.fstat(fd.fileno())
        fd.close()


@pytest.mark.parametrize("indices", [[1], [-1], [0, 0], [2**40]])
def test_a_descriptor_that_did_not_come_or_comes_twice_is_refused(indices: list[int]) -> None:
    body = {"who": [msgspec.msgpack.Ext(2, msgspec.msgpack.encode(i)) for i in indices]}
    incoming = Incoming.of([os.open("/dev/null", os.O_RDWR)])
    with pytest.raises(InvalidArgument, match=r"descriptor -?\d+ (did not come|is named twice)"):
        codec(tuple[Fd, ...]).arguments(msgspec.Raw(msgspec.msgpack.encode(body)), incoming)
    incoming.close()


@pytest.mark.parametrize("data", [b"", b"\xa1x", b"\xc3", b"\x92\x00\x00"])
def test_a_descriptor_or_endpoint_that_cannot_be_read_is_refused(data: bytes) -> None:
    for kind in (2, 3):
        assert "no message" in refusal(Fd, msgspec.msgpack.Ext(kind, data))


def test_a_uuid_of_another_size_is_refused() -> None:
    assert "no message" in refusal(uuid.UUID, msgspec.msgpack.Ext(1, b"short"))


def test_an_endpoint_arrives_with_its_contract() -> None:
    with null() as fd:
        made = there_and_back(Endpoint[Other] | None, Endpoint(Other, fd))
        assert made.contract is Other
        made.close()


def test_an_endpoint_of_another_contract_is_refused() -> None:
    body = {"who": msgspec.msgpack.Ext(3, msgspec.msgpack.encode((0, "stranger")))}
    incoming = Incoming.of([os.open("/dev/null", os.O_RDWR)])
    with pytest.raises(InvalidArgument, match="expected an endpoint of other, found one of"):
        codec(Endpoint[Other]).arguments(msgspec.Raw(msgspec.msgpack.encode(body)), incoming)
    incoming.close()


def test_given_descriptors_and_endpoints_close_after_the_send_and_owned_ones_stay() -> None:
    with null() as owned, null() as borrowed:
        given, away = Fd.give(os.dup(0)), Fd(os.dup(0))
        outgoing = Outgoing()
        encode([owned, Fd.borrow(borrowed), given], outgoing, "x")
        encode(Endpoint(Other, away), outgoing, "x")
        assert len(outgoing.filenos()) == 4
        outgoing.sent(result=False)
        assert given.closed
        assert away.closed
        assert not owned.closed
        outgoing.sent(result=True)
        assert owned.closed
        assert not borrowed.closed


def test_wire_descriptors_are_not_mistaken_for_dictionaries() -> None:
    with null() as fd:
        incoming = Incoming([fd])
        outgoing = Outgoing()
        encode({"x": WireDescriptor(incoming, 0)}, outgoing, "x")
        assert outgoing.filenos() == [fd.fileno()]


# --- a whole contract -------------------------------------------------------------------------


class Greeter(Contract, name="greeter"):
    """A contract with defaults."""

    @abstractmethod
    async def greet(self, who: Who, times: int = 1, *, loud: bool = False) -> str: ...


def test_defaults_are_filled_in_and_names_are_keys() -> None:
    it = codecs_of(Greeter)["greet"]
    values = it.lower(it.bind((Who("ada"),), {"loud": True}))
    assert values == {
        "who": {"name": "ada", "ports": [], "labels": {}},
        "times": 1,
        "loud": True,
    }
    raw = msgspec.Raw(msgspec.msgpack.encode({"who": {"name": "ada"}}))
    assert it.arguments(raw, Incoming()) == {"who": Who("ada")}


def test_a_call_that_does_not_fit_its_signature_is_a_type_error() -> None:
    it = codecs_of(Greeter)["greet"]
    with pytest.raises(TypeError, match="who"):
        it.bind((), {})
    with pytest.raises(TypeError, match="unexpected"):
        it.bind((Who("a"),), {"force": True})


def test_contract_errors_are_type_errors() -> None:
    assert issubclass(ContractError, TypeError)
