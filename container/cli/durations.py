"""Durations and moments on the command line, as Docker writes them: `30s`, `1m30s`, `10m` ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from container.cli.failure import UsageRefused

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_EPOCH = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
LONGEST = 366 * 86400.0
"""Seconds of the longest duration that makes sense to us."""


def parse_duration(text: str) -> float:
    """Return the seconds of a duration as in `30s`, `1m30s` or `500ms`; `0` needs no unit."""
    if text == "0":
        return 0.0
    seconds = -1.0
    if _WHOLE.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if not 0 <= seconds <= LONGEST:
        raise UsageRefused(
            f'"{text}" is no duration: use a number with ms, s, m or h, as in 30s or 1m30s'
        )
    return seconds


def parse_timeout(text: str) -> float | None:
    """Return the seconds of a timeout given as a plain number, or None for `-1`: wait for ever."""
    if text == "-1":
        return None
    if not re.fullmatch(r"\d{1,8}(?:\.\d{1,9})?", text, re.ASCII) or float(text) > LONGEST:
        raise UsageRefused(
            f'"{text}" is no number of seconds: use a number, as in 10, or -1 to wait for ever'
        )
    return float(text)


def parse_moment(text: str, now: datetime | None = None) -> datetime:
    """Return a moment: a time as in ISO 8601, seconds since 1970, or a duration before now."""
    if _EPOCH.fullmatch(text):
        return datetime.fromtimestamp(float(text), UTC)
    if _WHOLE.fullmatch(text):
        return (now or datetime.now(UTC)) - timedelta(seconds=parse_duration(text))
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC)  # without a zone: this machine's
    except (ValueError, OverflowError, OSError):
        raise UsageRefused(
            f'"{text}" is no time: use a time as 2026-01-31T12:00:00, seconds since 1970, or how '
            "long ago as in 10m"
        ) from None
