"""The options that keep a container running: restart policy, health checks, how it is stopped."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from container.cli.durations import parse_duration, parse_timeout
from container.cli.failure import UsageRefused

if TYPE_CHECKING:
    from container.contracts.apiserver import HealthCheck, RestartPolicy

KEEPING_OPTIONS = (
    click.option(
        "--restart",
        metavar="POLICY",
        help="no (the default), on-failure[:N], always or unless-stopped.",
    ),
    click.option("--stop-signal", metavar="SIGNAL", help="What `stop` sends."),
    click.option(
        "--stop-timeout",
        metavar="SECONDS",
        help="Time that `stop` gives it to end by itself (10); -1 for ever.",
    ),
    click.option("--health-cmd", metavar="COMMAND", help="Check its health by this, in a shell."),
    click.option("--health-interval", metavar="DURATION", help="Time between checks (30s)."),
    click.option("--health-timeout", metavar="DURATION", help="Time that one check has (30s)."),
    click.option(
        "--health-start-period", metavar="DURATION", help="Time in which failures don't count (0s)."
    ),
    click.option(
        "--health-retries", metavar="NUMBER", help="Failures in a row to be unhealthy (3)."
    ),
    click.option("--no-healthcheck", is_flag=True, help="Don't check, whatever the image wants."),
)


def parse_restart(text: str) -> RestartPolicy:
    """Return a restart policy: `no`, `on-failure[:N]`, `always` or `unless-stopped`."""
    from container.contracts.apiserver import RestartCondition, RestartPolicy

    name, colon, limit = text.partition(":")
    known = {condition.value: condition for condition in RestartCondition}
    condition = known.get(name)
    if condition is None:
        raise UsageRefused(
            f'"{text}" is no restart policy: use no, on-failure, on-failure:N, always or '
            "unless-stopped"
        )
    if not colon:
        return RestartPolicy(condition)
    if condition is not RestartCondition.ON_FAILURE:
        raise UsageRefused(f'"{text}": only on-failure has a number of restarts')
    if not re.fullmatch(r"\d{1,9}", limit, re.ASCII):
        raise UsageRefused(f'"{limit}" is no number of restarts: use a whole number')
    return RestartPolicy(condition, int(limit) or None)


def restart_policy(values: dict[str, Any]) -> RestartPolicy:
    """Return the policy that parsed options ask for."""
    from container.contracts.apiserver import RestartCondition, RestartPolicy

    text: str | None = values["restart"]
    policy = RestartPolicy() if text is None else parse_restart(text)
    if values["rm"] and policy.condition is not RestartCondition.NO:
        raise UsageRefused(
            f"--rm and --restart {text} contradict each other",
            hint="leave out one of them",
        )
    return policy


def health_check(values: dict[str, Any]) -> HealthCheck | None:
    """Return the health check that parsed options ask for; None leaves it to the image."""
    from attrs import evolve

    from container.contracts.apiserver import HealthCheck

    command: str | None = values["health_cmd"]
    given = HealthCheck(
        interval=_duration(values["health_interval"]),
        timeout=_duration(values["health_timeout"]),
        start_period=_duration(values["health_start_period"]),
        retries=_retries(values["health_retries"]),
    )
    for name, seconds in (("interval", given.interval), ("timeout", given.timeout)):
        if seconds is not None and seconds < 0.001:
            raise UsageRefused(f"--health-{name} is too short: at least 1ms is needed")
    if values["no_healthcheck"]:
        if command is not None or given != HealthCheck():
            raise UsageRefused(
                "--no-healthcheck and other health options contradict each other",
                hint="leave out one of them",
            )
        return HealthCheck(command=())
    if command is None:
        return given if given != HealthCheck() else None
    if not command.strip():
        raise UsageRefused(
            "--health-cmd is empty", hint="--no-healthcheck turns the image's own check off"
        )
    return evolve(given, command=("/bin/sh", "-c", command))


def stop_timeout(values: dict[str, Any]) -> float | None:
    """Return the time that the container has to end by itself; None is for ever."""
    text: str | None = values["stop_timeout"]
    return 10.0 if text is None else parse_timeout(text)


def _duration(text: str | None) -> float | None:
    return None if text is None else parse_duration(text)


def _retries(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) == 0:
        raise UsageRefused(f'"{text}" is no number of retries: use a whole number above 0')
    return int(text)
