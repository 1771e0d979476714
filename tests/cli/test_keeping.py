"""Restart policies, health checks, stop timeouts and durations on the command line."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.cli.durations import parse_duration, parse_moment, parse_timeout
from container.cli.failure import UsageRefused
from container.cli.keeping import parse_restart
from container.contracts.apiserver import HealthCheck, RestartCondition, RestartPolicy

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600), ("1.5h", 5400), (".5s", 0.5),
        ("0", 0), ("0s", 0), ("2m0.5s", 120.5), ("100us", 1e-4), ("100µs", 1e-4), ("1h1m1s", 3661),
    ],
)  # fmt: skip
def test_durations_are_as_dockers(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-1s", "1 s", "1d", "1e3s", "1m 30s", "30S", "nan", "9999999h", "٣s"]
)
def test_another_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageRefused) as caught:
        parse_duration(text)
    assert caught.value.message == (
        f'"{text}" is no duration: use a number with ms, s, m or h, as in 30s or 1m30s'
    )


def test_a_timeout_is_a_number_of_seconds_or_for_ever() -> None:
    assert [parse_timeout(text) for text in ("10", "0", "2.5", "-1")] == [10.0, 0.0, 2.5, None]
    for text in ("", "-2", "10s", "1e3", "inf", "99999999", "nan"):
        with pytest.raises(UsageRefused, match="is no number of seconds"):
            parse_timeout(text)


def test_a_moment_is_a_time_seconds_since_1970_or_how_long_ago() -> None:
    assert parse_moment("1767323045", NOW) == NOW
    assert parse_moment("2026-01-02T03:04:05Z", NOW) == NOW
    assert parse_moment("2026-01-02T04:04:05+01:00", NOW) == NOW
    assert parse_moment("1h4m5s", NOW) == datetime(2026, 1, 2, 2, 0, 0, tzinfo=UTC)
    assert parse_moment("2026-01-02", NOW).tzinfo is not None
    for text in ("", "yesterday", "10", "10 m", "2026-13-01", "-5m"):
        if text == "10":
            continue
        with pytest.raises(UsageRefused, match="is no time: use"):
            parse_moment(text, NOW)


@given(st.text())
def test_any_text_is_a_time_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_timeout, parse_moment, parse_restart):
        try:
            parse(text)
        except UsageRefused:
            pass


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("no", RestartPolicy()),
        ("always", RestartPolicy(RestartCondition.ALWAYS)),
        ("unless-stopped", RestartPolicy(RestartCondition.UNLESS_STOPPED)),
        ("on-failure", RestartPolicy(RestartCondition.ON_FAILURE)),
        ("on-failure:3", RestartPolicy(RestartCondition.ON_FAILURE, 3)),
        ("on-failure:0", RestartPolicy(RestartCondition.ON_FAILURE)),
    ],
)
def test_restart_policies_are_sent(run: Any, session: Any, text: str, policy: Any) -> None:
    assert run("create", "--restart", text, "demo").status == 0
    (options,) = session.fake_containers.options
    assert options.restart == policy


def test_what_is_not_said_is_left_to_image_and_defaults(run: Any, session: Any) -> None:
    run("create", "demo")
    (options,) = session.fake_containers.options
    assert (options.restart, options.health, options.stop_timeout) == (RestartPolicy(), None, 10.0)


def test_health_options_are_sent(run: Any, session: Any) -> None:
    run(
        "create", "--health-cmd", "curl -f localhost || exit 1", "--health-interval", "1m30s",
        "--health-timeout", "5s", "--health-start-period", "10s", "--health-retries", "5",
        "--stop-timeout", "-1", "demo",
    )  # fmt: skip
    run("create", "--no-healthcheck", "--stop-timeout", "0", "demo")
    run("create", "--health-interval", "5s", "demo")
    first, second, third = session.fake_containers.options
    command = ("/bin/sh", "-c", "curl -f localhost || exit 1")
    assert first.health == HealthCheck(command, 90.0, 5.0, 10.0, 5)
    assert first.stop_timeout is None
    assert second.health == HealthCheck(command=())
    assert second.stop_timeout == 0.0
    assert third.health == HealthCheck(interval=5.0), "of the image's own check"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--restart", "sometimes"), '"sometimes" is no restart policy: use no, on-failure'),
        (("--restart", ""), '"" is no restart policy'),
        (("--restart", "always:3"), '"always:3": only on-failure has a number of restarts'),
        (("--restart", "on-failure:x"), '"x" is no number of restarts'),
        (("--restart", "on-failure:"), '"" is no number of restarts'),
        (("--rm", "--restart", "always"), "--rm and --restart always contradict each other"),
        (("--rm", "--restart", "on-failure:2"), "--rm and --restart on-failure:2 contradict"),
        (("--stop-timeout", "soon"), '"soon" is no number of seconds'),
        (("--stop-signal", "SIGNOTHING"), '"SIGNOTHING" is no signal'),
        (("--health-cmd", " "), "--health-cmd is empty"),
        (("--health-cmd", "x", "--health-interval", "30"), '"30" is no duration'),
        (("--health-cmd", "x", "--health-timeout", "0s"), "--health-timeout is too short"),
        (("--health-cmd", "x", "--health-retries", "0"), '"0" is no number of retries'),
        (("--health-cmd", "x", "--health-start-period", "-1s"), '"-1s" is no duration'),
        (("--no-healthcheck", "--health-cmd", "x"), "--no-healthcheck and other health options"),
        (("--no-healthcheck", "--health-retries", "2"), "--no-healthcheck and other health"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "create"])
def test_a_wrong_option_is_refused_in_one_sentence(
    run: Any, session: Any, verb: str, arguments: tuple[str, ...], sentence: str
) -> None:
    said = run(verb, *arguments, "demo")
    assert said.status == 125
    assert said.err.startswith(f"container: {sentence}")
    assert session.connections == 0, "before anybody is asked"


def test_rm_with_a_policy_of_no_is_fine(run: Any, session: Any) -> None:
    assert run("create", "--rm", "--restart", "no", "demo").status == 0
