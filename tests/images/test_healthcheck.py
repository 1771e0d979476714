"""The health check of an image: what is read, and what counts for nothing and is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from container.contracts.images import ImageHealthCheck
from container.images.healthcheck import parse_health_check
from container.images.manifest import parse_configuration

SECOND = 10**9


def parsed(value: object, **config: object) -> ImageHealthCheck | None:
    """Return what the configuration of an image with this health check says."""
    document = {"os": "linux", "architecture": "amd64", "config": {"Healthcheck": value, **config}}
    return parse_configuration(json.dumps(document).encode()).config.health


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, None),
        ({}, None),
        ({"Test": []}, None),
        ({"Test": ["NONE"]}, ImageHealthCheck(command=())),
        ({"Test": ["CMD", "probe", "a b"]}, ImageHealthCheck(command=("probe", "a b"))),
        (
            {"Test": ["CMD-SHELL", "probe || exit 1"], "Interval": 5 * SECOND, "Timeout": SECOND,
             "StartPeriod": SECOND // 2, "Retries": 4, "StartInterval": SECOND},
            ImageHealthCheck(("/bin/sh", "-c", "probe || exit 1"), 5.0, 1.0, 0.5, 4),
        ),
        ({"Interval": 5 * SECOND, "Timeout": 0, "Retries": 0}, ImageHealthCheck(interval=5.0)),
    ],
)  # fmt: skip
def test_a_health_check_is_read_with_times_in_nanoseconds(value: Any, found: Any) -> None:
    assert parsed(value) == found


def test_a_configuration_without_one_says_nothing_and_its_shell_runs_one() -> None:
    assert parse_configuration(b'{"os": "linux", "architecture": "amd64"}').config.health is None
    found = parsed({"Test": ["CMD-SHELL", "probe"]}, Shell=["/bin/bash", "-ec"])
    assert found == ImageHealthCheck(command=("/bin/bash", "-ec", "probe"))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("yes", "malformed"),
        ({"Test": "probe"}, "malformed"),
        ({"Test": ["CMD", "x"], "Interval": "5s"}, "malformed"),
        ({"Test": ["CMD"]}, "['CMD'] can't be run"),
        ({"Test": ["CMD", ""]}, "can't be run"),
        ({"Test": ["CMD-SHELL", " "]}, "can't be run"),
        ({"Test": ["CMD-SHELL", "a", "b"]}, "can't be run"),
        ({"Test": ["probe"]}, "can't be run"),
        ({"Test": ["CMD", "a\0"]}, "NUL"),
    ],
)
def test_one_that_cant_be_run_is_told_and_the_image_stays_usable(value: Any, told: str) -> None:
    found = parsed(value)
    assert found is not None
    assert found.command is None
    (problem,) = found.problems
    assert told in problem


def test_a_number_out_of_range_is_told_and_all_else_holds() -> None:
    found = parsed(
        {"Test": ["CMD", "x"], "Interval": 5, "Timeout": -SECOND, "StartPeriod": 10**18,
         "Retries": 10**30}
    )  # fmt: skip
    assert found is not None
    assert found == ImageHealthCheck(command=("x",), problems=found.problems)
    assert sorted(problem.split(" of ")[0].split(" are ")[0] for problem in found.problems) == [
        f"{10**30} health retries",
        "a health interval",
        "a health start period",
        "a health timeout",
    ]


def test_bytes_that_are_no_health_check_are_told() -> None:
    for raw in (b"", b"{", b"\xff", b"[" * 100_000):
        found = parse_health_check(raw)
        assert found is not None
        assert found.problems
