"""`container events`: what is shown, how it ends, and that it goes on over a restart."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from container.contracts.apiserver import Event, EventFilter, EventKind
from container.ipc import Fate, PeerGone, ScopeEnded, Unavailable

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)


def event(sequence: int, kind: EventKind = EventKind.DIE, missed: int = 0, **rest: str) -> Event:
    image = "docker.io/library/demo:latest"
    return Event(sequence, WHEN, kind, "000000000001", "web", image, rest, missed)


@pytest.fixture
def happening(session: Any) -> Any:
    """What each connection tells, and how it ends."""
    return session.fake_containers.happening


def wanted(session: Any) -> list[EventFilter]:
    return [call[1] for call in session.fake_containers.calls if call[0] == "events"]


def test_a_line_has_time_container_kind_and_attributes(run: Any, happening: Any) -> None:
    happening.append(((event(1, exit_code="3", restarts="no"), event(2, EventKind.DESTROY)), None))
    said = run("events")
    assert said.status == 0
    first, second = said.out.splitlines()
    assert first.split()[1:] == ["000000000001", "web", "die", "exit_code=3,", "restarts=no"]
    assert datetime.fromisoformat(first.split()[0]) == WHEN
    assert second.split()[1:] == ["000000000001", "web", "destroy"]


def test_json_is_one_object_a_line(run: Any, happening: Any) -> None:
    happening.append(((event(1, exit_code="3"), event(2)), None))
    found = [json.loads(line) for line in run("events", "--format", "json").out.splitlines()]
    assert [item["sequence"] for item in found] == [1, 2]
    assert (found[0]["kind"], found[0]["attributes"]) == ("die", {"exit_code": "3"})


def test_filters_and_times_are_sent(run: Any, session: Any) -> None:
    run(
        "events", "-f", "container=web", "-f", "event=die", "--filter", "event=health_status",
        "--since", "2026-01-02T03:04:05Z", "--until", "1767323046",
    )  # fmt: skip
    (sent,) = wanted(session)
    assert sent.containers == ("web",)
    assert sent.kinds == (EventKind.DIE, EventKind.HEALTH_STATUS)
    assert (sent.until - sent.since).total_seconds() == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-f", "web"), '"web" is no filter: use container=NAME or event=KIND'),
        (("-f", "image=demo"), '"image=demo" is no filter'),
        (("-f", "container="), '"container=" is no filter'),
        (("-f", "event=explode"), '"explode" is no kind of event'),
        (("--since", "yesterday"), '"yesterday" is no time'),
        (("--until", "soon"), '"soon" is no time'),
        (("--format", "yaml"), "invalid value for '--format'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Any, session: Any, arguments: tuple[str, ...], sentence: str
) -> None:
    said = run("events", *arguments)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(f"container: {sentence}")
    assert session.connections == 0


def test_events_that_were_missed_are_said(run: Any, happening: Any) -> None:
    happening.append(((event(1), event(9, missed=7)), None))
    said = run("events")
    assert "7 events were missed" in said.err
    assert len(said.out.splitlines()) == 2


@pytest.mark.parametrize(
    "end",
    [
        PeerGone("the API server is gone", fate=Fate.UNKNOWN),
        ScopeEnded("the API server ended it"),
        Unavailable("container-apiserver is stopping"),
    ],
)
def test_a_restart_of_the_server_is_said_and_gone_on_from(
    run: Any, session: Any, happening: Any, end: Exception
) -> None:
    happening.extend([((event(5),), end), ((event(6),), None)])
    said = run("events", "-f", "container=web")
    assert said.status == 0
    assert len(said.out.splitlines()) == 2
    assert "the API server was restarted" in said.err
    first, second = wanted(session)
    assert first == EventFilter(containers=("web",))
    assert second == EventFilter(containers=("web",), after=5)


def test_before_the_first_event_it_goes_on_from_when_it_began(
    run: Any, session: Any, happening: Any
) -> None:
    happening.extend([((), PeerGone("gone", fate=Fate.UNKNOWN)), ((), None)])
    assert run("events").status == 0
    _, second = wanted(session)
    assert abs((second.since - datetime.now(UTC)).total_seconds()) < 30


def test_it_ends_well_when_the_system_stops(run: Any, session: Any, happening: Any) -> None:
    happening.append(((event(1),), PeerGone("gone", fate=Fate.UNKNOWN)))
    session.fake_launcher = None
    said = run("events")
    assert said.status == 0
    assert said.err == "container: the system has stopped\n"


def test_a_server_that_cannot_be_asked_at_all_is_an_error(
    run: Any, session: Any, happening: Any
) -> None:
    session.fake_containers.events = refuse
    assert run("events").status == 1


def refuse(wanted: object) -> Any:
    raise PeerGone("nobody listens", fate=Fate.REFUSED)
