"""Errors as values: codes, provenance, causes, groups, bugs, and what a hostile peer sends."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from container.ipc import (
    AlreadyExists,
    ContainerError,
    Contract,
    DataLoss,
    ErrorCode,
    Fate,
    Hop,
    InternalError,
    InvalidArgument,
    NotFound,
    PeerGone,
    Unavailable,
    process_name,
)
from container.ipc.errors import ERROR_CLASSES, ERROR_TYPES
from container.ipc.wire_errors import BYTES, DEPTH, FRAMES, LENGTH, WIDTH, from_wire, to_wire


def carried(error: BaseException, route: str = "a/b") -> Exception:
    """Return an error as the caller gets it."""
    return from_wire(msgspec.msgpack.decode(msgspec.msgpack.encode(to_wire(error, route))))


@pytest.mark.parametrize("code", list(ErrorCode))
def test_each_code_has_a_class_that_travels(code: ErrorCode) -> None:
    cls = ERROR_CLASSES[code]
    assert cls.code is code
    error = carried(cls("a sentence", hint="do this", details={"key": [1, None, {"x": 2.5}]}))
    assert type(error) is cls
    assert isinstance(error, ContainerError)
    assert str(error) == error.message == "a sentence"
    assert error.hint == "do this"
    assert error.details["key"] == [1, None, {"x": 2.5}]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.ENOMEM])
def test_what_the_machine_has_none_left_of_is_no_bug(number: int) -> None:
    error = carried(OSError(number, os.strerror(number), "/a/secret/path"))
    assert type(error) is Unavailable
    assert os.strerror(number).lower() in str(error)
    assert "secret" not in str(error)
    assert error.details == {"errno": number}
    assert type(carried(OSError(errno.EBADF, "bad"))) is InternalError


def test_an_unknown_code_arrives_as_the_base() -> None:
    error = from_wire({"code": "from-the-future", "message": "new"})
    assert type(error) is ContainerError
    assert str(error) == "new"


def test_each_process_adds_its_hop() -> None:
    first = carried(NotFound("no"), "images/get")
    assert isinstance(first, NotFound)
    second = carried(first, "containers/create")
    assert isinstance(second, NotFound)
    here = (process_name(), os.getpid())
    assert second.provenance == (Hop(*here, "images/get"), Hop(*here, "containers/create"))
    assert any("images/get" in note for note in second.__notes__)


def test_an_error_that_goes_in_circles_keeps_its_last_hops() -> None:
    error: Exception = NotFound("no")
    for number in range(DEPTH + 5):
        error = carried(error, f"a/{number}")
    assert isinstance(error, NotFound)
    assert [hop.route for hop in error.provenance][-1] == f"a/{DEPTH + 4}"
    assert len(error.provenance) == DEPTH


def test_a_cause_travels_also_one_that_is_no_error_of_a_contract() -> None:
    error = NotFound("no image")
    error.__cause__ = DataLoss("index is torn")
    error.__cause__.__cause__ = ZeroDivisionError("not ours")
    made = carried(error)
    assert isinstance(made.__cause__, DataLoss)
    foreign = made.__cause__.__cause__
    assert type(foreign) is ContainerError
    assert foreign.message == "ZeroDivisionError: not ours"
    assert foreign.details == {"exception": "ZeroDivisionError"}
    assert foreign.provenance == (Hop(process_name(), os.getpid(), "a/b"),)


def test_the_causes_of_a_cause_that_is_a_group_travel_in_it() -> None:
    error = NotFound("no image")
    error.__cause__ = ExceptionGroup("both", [OSError(2, "gone"), DataLoss("torn")])
    cause = carried(error).__cause__
    assert isinstance(cause, ExceptionGroup)
    assert [str(leaf) for leaf in cause.exceptions] == ["FileNotFoundError: [Errno 2] gone", "torn"]


def test_notes_travel_once_however_many_hops() -> None:
    error: Exception = NotFound("no")
    error.add_note("while pulling")
    for route in ("a/b", "c/d"):
        error = carried(error, route)
    assert error.__notes__.count("while pulling") == 1
    assert sum("a/b" in note for note in error.__notes__) == 1
    group = ExceptionGroup("two", [NotFound("a"), error])
    group.add_note("of the group")
    assert carried(group).__notes__ == ["of the group"]


class Taken(AlreadyExists, name="tests.taken"):
    def __init__(self, key: str, holder: int) -> None:
        super().__init__(f"{key} is taken", details={"holder": holder})


def test_an_error_class_with_a_name_arrives_as_itself() -> None:
    class Unnamed(Taken):
        pass

    for error in (Taken("x", 7), Unnamed("x", 7)):
        made = carried(error)
        assert type(made) is Taken
        assert (made.message, made.details) == ("x is taken", {"holder": 7})


def test_an_error_class_that_is_not_known_arrives_as_its_codes_and_is_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = to_wire(Taken("x", 7), "a/b")
    with monkeypatch.context() as patch:
        patch.delitem(ERROR_TYPES, "tests.taken")
        relayed = from_wire(body)
        assert type(relayed) is AlreadyExists
    assert type(carried(relayed)) is Taken


def test_an_error_classs_name_does_not_change_its_code() -> None:
    made = from_wire({"code": "not-found", "message": "x", "error_type": "tests.taken"})
    assert type(made) is NotFound


@pytest.mark.parametrize("name", ["", "Upper", "two words", "tests.taken"])
def test_an_error_class_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(TypeError, match="error name"):
        type("Other", (NotFound,), {}, name=name)


def test_a_bugs_note_says_where_it_was_and_no_value() -> None:
    def deep(secret: str, left: int) -> None:
        if left:
            deep(secret, left - 1)
        raise ValueError(secret)

    for depth in (1, 100):
        try:
            deep("s3cret", depth)
        except ValueError as bug:
            made = carried(carried(bug))
        (note,) = [note for note in made.__notes__ if "remote traceback" in note]
        lines = note.splitlines()
        assert lines[-1].strip() == "ValueError"
        assert "test_errors.py:" in lines[-2]
        assert lines[-2].endswith("deep")
        assert "s3cret" not in note
        assert len(lines) <= FRAMES + 3


def test_a_handler_whose_channel_broke_is_unavailable_and_says_why() -> None:
    error = trio.BrokenResourceError("the connection was lost")
    error.__cause__ = NotFound("no such file")
    made = carried(error)
    assert type(made) is Unavailable
    assert "the connection was lost" in made.message
    assert isinstance(made.__cause__, NotFound)


def test_an_error_of_any_size_fits_a_frame_of_every_peer() -> None:
    long = "x" * LENGTH
    error = NotFound("no", hint=long, details={"a": [long] * 20})
    error.add_note(long)
    group = ExceptionGroup("many", [error, *(NotFound(long) for _ in range(40))])
    for large in (error, group):
        assert len(msgspec.msgpack.encode(to_wire(large, "a/b"))) <= BYTES
    made = carried(error)
    assert isinstance(made, NotFound)
    assert made.hint is not None


def test_a_cause_of_itself_is_cut() -> None:
    error = NotFound("no")
    error.__cause__ = error
    made: BaseException | None = carried(error)
    count = 0
    while made is not None:
        made, count = made.__cause__, count + 1
    assert count == DEPTH + 1


def test_why_a_peer_is_gone_travels() -> None:
    error = carried(PeerGone("gone", fate=Fate.NOT_SENT, why="unresponsive"))
    assert isinstance(error, PeerGone)
    assert (error.fate, error.why) == (Fate.NOT_SENT, "unresponsive")


def test_a_bug_is_not_translated_and_its_traceback_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise KeyError("secret")
    except KeyError as bug:
        error = carried(bug, "greeter/greet")
    assert isinstance(error, InternalError)
    assert "secret" not in f"{error} {error.hint} {error.details}"
    assert "KeyError" in str(error)
    number = error.details["id"]
    (record,) = [record for record in caplog.records if number in record.getMessage()]
    assert record.exc_info is not None
    assert "secret" in caplog.text


def test_a_group_travels_as_a_group() -> None:
    group = ExceptionGroup("two", [NotFound("a"), ExceptionGroup("in", [DataLoss("b")])])
    made = carried(group)
    assert isinstance(made, ExceptionGroup)
    assert made.message == "two"
    assert [type(leaf) for leaf in made.exceptions] == [NotFound, DataLoss]


def test_a_group_of_one_travels_as_that_one() -> None:
    nested = ExceptionGroup("outer", [ExceptionGroup("inner", [NotFound("a")])])
    assert isinstance(carried(nested), NotFound)


async def test_cancellations_are_left_out_of_a_group() -> None:
    caught: list[BaseException] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            caught.append(cancelled)
            raise
    group = BaseExceptionGroup("both", [*caught, NotFound("a")])
    assert isinstance(carried(group), NotFound)
    alone = carried(BaseExceptionGroup("only", caught))
    assert isinstance(alone, ContainerError)
    assert alone.code is ErrorCode.CANCELLED


def test_a_group_that_is_too_wide_or_too_deep_is_cut() -> None:
    wide = carried(ExceptionGroup("wide", [NotFound(str(n)) for n in range(WIDTH + 9)]))
    assert isinstance(wide, ExceptionGroup)
    assert len(wide.exceptions) == WIDTH
    deep: Exception = ExceptionGroup("leaf", [NotFound("a"), NotFound("b")])
    for _ in range(DEPTH + 5):
        deep = ExceptionGroup("deep", [deep, NotFound("c")])
    assert isinstance(carried(deep), ExceptionGroup)


def test_text_that_is_no_utf8_and_numbers_out_of_range_still_travel() -> None:
    error = carried(
        InvalidArgument("no file \udcff", hint="\udc80", details={"\udcfe": 2**70, "o": object})
    )
    assert isinstance(error, InvalidArgument)
    assert str(error) == "no file \\udcff"
    assert error.details["\\udcfe"] == str(2**70)


def test_long_text_is_cut() -> None:
    error = carried(NotFound("x" * 10 * LENGTH, details={"y": "z" * 10 * LENGTH}))
    assert isinstance(error, NotFound)
    assert len(error.message) == LENGTH
    assert len(str(error.details["y"])) == LENGTH


def test_details_that_contain_themselves_are_cut() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    assert isinstance(carried(NotFound("x", details=endless)), NotFound)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
KEYS = ["code", "message", "hint", "details", "hops", "cause", "group", "notes", "error_type"]


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), JSON, max_size=7))
@settings(max_examples=200, deadline=None)
def test_whatever_comes_as_an_error_is_an_exception(body: dict[str, Any]) -> None:
    made = from_wire(body)
    assert isinstance(made, (ContainerError, ExceptionGroup))
    assert isinstance(to_wire(made, "a/b"), dict)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"hops": 5, "details": [], "hint": 3, "cause": "x", "group": {}},
        {"hops": [1, ["a"], ["a", "b", "c"], {"x": 1}]},
        {"code": [], "message": None},
        {"code": "peer-gone", "details": {"fate": [], "why": 3}},
        {"code": "not-found", "details": {1: 2}},
        {"group": [3, None]},
    ],
)
def test_an_error_of_strange_parts_is_still_an_error(body: dict[str, Any]) -> None:
    assert isinstance(from_wire(body), ContainerError)


SERVICE = """
import logging, sys, trio
from abc import abstractmethod
from container.ipc import Contract, open_service, set_process_name

class Broken(Contract, name="broken"):
    @abstractmethod
    async def divide(self, by: int) -> float: ...

class BrokenService(Broken):
    async def divide(self, by):
        return 1 / by

async def main():
    set_process_name("broken-service")
    async with open_service(BrokenService(), at=sys.argv[1]):
        print("ready", flush=True)
        await trio.sleep_forever()

logging.basicConfig()
trio.run(main)
"""


class Broken(Contract, name="broken"):
    @abstractmethod
    async def divide(self, by: int) -> float: ...


def test_a_bugs_id_finds_its_traceback_in_the_log_of_the_process_where_it_is(
    tmp_path: Path,
) -> None:
    async def call() -> InternalError:
        async with Broken.connect(path) as broken:
            with pytest.raises(InternalError) as caught:
                await broken.divide(0)
        return caught.value

    path, log = tmp_path / "s", tmp_path / "log"
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, str(path)], stdout=subprocess.PIPE, stderr=errors
        )
    with process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            error = trio.run(call)
        finally:
            process.kill()
    assert error.provenance == (Hop("broken-service", process.pid, "broken/divide"),)
    (note,) = [note for note in error.__notes__ if "remote traceback" in note]
    assert "BrokenService.divide" in note
    assert f"pid {process.pid}" in note
    number = error.details["id"]
    logged = log.read_text()
    assert logged.count(f"bug {number} in broken/divide") == 1
    assert "ZeroDivisionError: division by zero" in logged.partition(str(number))[2]
