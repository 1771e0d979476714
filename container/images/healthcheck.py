"""The health check of an image's configuration. No I/O.

Nothing in it makes an image unusable: what is wrong counts for nothing, and is told.

| `Test` | the check |
|---|---|
| none, or `[]` | the user's |
| `["NONE"]` | none |
| `["CMD", "a", "b"]` | `a b` |
| `["CMD-SHELL", "text"]` | `text`, in the image's `Shell`, or `/bin/sh -c` |

Times are whole nanoseconds, and 0 is the default, also of `Retries`.

Source: Docker image specification v1.3, `Healthcheck`, which OCI's reserves.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from container.contracts.images import ImageHealthCheck

SHELL = ("/bin/sh", "-c")
SHORTEST = 1_000_000
"""Nanoseconds; one below it was meant as seconds."""
LONGEST = 366 * 86400 * 10**9
RETRIES_MAX = 2**31 - 1


class _HealthDocument(msgspec.Struct, frozen=True, rename="pascal"):
    test: list[str] | None = None
    interval: int | None = None
    timeout: int | None = None
    start_period: int | None = None
    retries: int | None = None


def parse_health_check(
    raw: bytes | memoryview, shell: Sequence[str] | None = None
) -> ImageHealthCheck | None:
    """Read `Healthcheck` of a configuration; None when it says nothing.

    Args:
        raw: Its JSON.
        shell: The configuration's `Shell`.
    """
    try:
        document = msgspec.json.decode(raw, type=_HealthDocument | None)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return ImageHealthCheck(problems=(f"the health check is malformed: {error}",))
    if document is None:
        return None
    problems: list[str] = []

    def seconds(what: str, value: int | None) -> float | None:
        if not value:
            return None
        if not SHORTEST <= value <= LONGEST:
            problems.append(f"a health {what} of {value} ns is out of range: 1 ms to a year")
            return None
        return value / 1e9

    retries = document.retries or None
    if retries is not None and not 1 <= retries <= RETRIES_MAX:
        problems.append(f"{retries} health retries are out of range: at least 1")
        retries = None
    found = ImageHealthCheck(
        command=_command(document.test or [], shell or SHELL, problems),
        interval=seconds("interval", document.interval),
        timeout=seconds("timeout", document.timeout),
        start_period=seconds("start period", document.start_period),
        retries=retries,
        problems=tuple(problems),
    )
    return None if found == ImageHealthCheck() else found


def _command(
    test: Sequence[str], shell: Sequence[str], problems: list[str]
) -> tuple[str, ...] | None:
    match test:
        case []:
            return None
        case ["NONE"]:
            return ()
        case ["CMD", program, *arguments] if program:
            command = (program, *arguments)
        case ["CMD-SHELL", text] if text.strip():
            command = (*shell, text)
        case _:
            problems.append(f"a health check of {list(test)!r:.200} can't be run")
            return None
    if any("\0" in word for word in command):
        problems.append("a health command holds a NUL byte")
        return None
    return command
