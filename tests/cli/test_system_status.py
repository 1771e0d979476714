"""`container system status` and `stop`: readiness, restarts and the last problem, in 80 columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from container.contracts.launcher import ServiceState, ServiceStatus, SystemStatus

WHEN = datetime(2026, 1, 2, tzinfo=UTC)


def service(name: str, state: ServiceState = ServiceState.RUNNING, **more: Any) -> ServiceStatus:
    """Return a row."""
    return ServiceStatus(name, "", state, 4_194_304, f"/run/{name}", WHEN, 3, 137, **more)


@pytest.fixture
def show(session: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Show these services; return the lines."""
    monkeypatch.setenv("COLUMNS", "80")

    def show(*services: ServiceStatus, supervisor: str = "", output: str = "table") -> list[str]:
        async def status() -> SystemStatus:
            return SystemStatus("0.1.0", 5, "/r", "/n", WHEN, services, supervisor)

        session.fake_launcher.status = status
        said = run("system", "status", "--format", output)
        assert said.status == 0
        return said.out.splitlines()

    return show


def test_a_service_that_is_not_ready_yet_is_starting(show: Callable[..., list[str]]) -> None:
    lines = show(service("one", ready=False), service("two"))
    assert lines[-2].split()[:2] == ["one", "starting"]
    assert lines[-1].split()[:2] == ["two", "running"]


def test_what_a_service_says_and_how_it_failed_last_fits_the_terminal(
    show: Callable[..., list[str]],
) -> None:
    problem = "it was not ready within 30 s; the last lines of its log: " + "word " * 60
    lines = show(
        service("runtime.0123456789ab", said="serving"),
        service("bad", ServiceState.FAILED, problem=problem, problem_at=WHEN),
    )
    assert max(map(len, lines)) <= 80
    assert "runtime.0123456789ab: serving" in lines
    (first,) = [number for number, line in enumerate(lines) if line.startswith("bad failed ")]
    assert all(line.startswith("    ") for line in lines[first + 1 :])
    assert " ".join(" ".join(lines[first:]).split()).endswith(problem.strip())


def test_under_systemd_it_says_whose_the_other_services_are(
    show: Callable[..., list[str]],
) -> None:
    lines = show(supervisor="systemd")
    assert "no service is registered" in lines
    assert lines[-1].startswith("The named services are systemd's")
    assert json.loads("".join(show(supervisor="systemd", output="json")))["supervisor"] == "systemd"
