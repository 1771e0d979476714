"""Answers that are kept: for whom, for how long, and how many."""

from __future__ import annotations

from pathlib import Path

import dns.message
import pytest

from container.resolver import Entry, Names, Upstreams, question
from container.resolver.ready import Ready
from container.resolver.responder import Responder

ASKER = "10.89.0.2"


def query(number: int, name: str = "web") -> bytes:
    """Return a query for an address."""
    return dns.message.make_query(name, "A", id=number).to_wire()


def test_an_answer_is_that_of_the_query_of_the_same_bytes_with_its_id() -> None:
    ready = Ready()
    assert ready.find(1, query(7), "a", 0) is None
    ready.keep(query(7), "a", 0, 1, b"\0\7 answer")
    assert ready.find(1, query(8), "a", 5) == b"\0\x08 answer"
    assert ready.find(1, query(8, "db"), "a", 5) is None
    assert ready.find(1, query(8), "b", 5) is None


def test_with_another_generation_all_is_forgotten() -> None:
    ready = Ready()
    ready.find(1, query(7), "a", 0)
    ready.keep(query(7), "a", 0, 1, b"\0\7 answer")
    assert ready.find(2, query(7), "a", 0) is None
    assert ready.find(1, query(7), "a", 0) is None


def test_each_way_has_its_turn() -> None:
    ready = Ready()
    ready.find(1, query(7), "a", 0)
    for turn in range(3):
        assert ready.find(1, query(7), "a", turn) is None
        ready.keep(query(7), "a", turn, 3, b"\0\7%d" % turn)
    found = [ready.find(1, query(7), "a", turn) for turn in range(6)]
    assert found == [b"\0\7%d" % turn for turn in (0, 1, 2, 0, 1, 2)]


def test_no_more_is_kept_than_there_is_room_for() -> None:
    ready = Ready()
    ready.find(1, b"", "a", 0)
    for number in range(5000):
        ready.keep(query(7, f"x{number}"), "a", 0, 1, b"\0\7 answer")
        assert len(ready._answers) <= 1024
        assert len(ready._ways) <= 1024
    ready.keep(query(7) + bytes(600), "a", 0, 1, b"\0\7 answer")
    ready.keep(query(7), "a", 0, 1, bytes(1300))
    assert ready.find(1, query(7) + bytes(600), "a", 0) is None
    assert ready.find(1, query(7), "a", 0) is None


def test_what_was_answered_is_not_read_again_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("search lan\n")
    names = Names(["10.89.0.0/24"], ["10.89.0.1"])
    names.put(Entry("k", (ASKER,), ("web",)))
    made = Responder(names, Upstreams(resolv_conf=conf))
    reads: list[bytes] = []
    original = question.read

    def read(packet: bytes) -> dns.message.Message:
        reads.append(packet)
        return original(packet)

    monkeypatch.setattr(question, "read", read)
    for number in range(5):
        said = made.answer(query(number, "web.lan"), ASKER, 1232)
        assert isinstance(said, bytes)
        found = dns.message.from_wire(said)
        assert (found.id, str(found.answer[0][0])) == (number, ASKER)
    assert len(reads) == 1
    # Another size, another asker, another name in the network, other search domains.
    made.answer(query(9, "web.lan"), ASKER, 65535)
    names.put(Entry("l", ("10.89.0.3",), ("db",), search=("example",)))
    made.answer(query(9, "web.lan"), ASKER, 1232)
    made.answer(query(9, "web.lan"), "10.89.0.3", 1232)
    conf.write_text("search other\n")
    made.answer(query(9, "web.lan"), ASKER, 1232)
    assert len(reads) == 5
