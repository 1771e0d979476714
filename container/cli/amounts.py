"""Amounts on the command line: memory, CPUs, processes; and how sizes are shown."""

from __future__ import annotations

import math
import re

from container.cli.failure import UsageRefused

_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_SHIFTS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def parse_memory(text: str) -> int:
    """Return bytes of an amount as in `512m`: b, k, m, g, t, each 1024 times the one before."""
    match = _MEMORY.fullmatch(text.strip())
    amount = int(float(match[1]) * (1 << _SHIFTS[match[2].lower()])) if match else 0
    if not 0 < amount < 1 << 63:
        raise UsageRefused(
            f'"{text}" is no amount of memory: use a number with b, k, m or g, as in 512m'
        )
    return amount


def parse_cpus(text: str) -> float:
    """Return a number of cores, as in `1.5`."""
    try:
        cpus = float(text)
    except ValueError:
        cpus = 0.0
    if not math.isfinite(cpus) or cpus <= 0 or "_" in text:
        raise UsageRefused(f'"{text}" is no number of CPUs: use a number above 0, as in 1.5')
    return cpus


def parse_pids(text: str) -> int | None:
    """Return a limit of processes and threads; 0 and -1 are no limit."""
    if not re.fullmatch(r"-1|\d{1,9}", text, re.ASCII):
        raise UsageRefused(
            f'"{text}" is no number of processes: use a whole number, as in 100, or -1 for no limit'
        )
    return int(text) if int(text) > 0 else None


def parse_lines(text: str) -> int | None:
    """Return a number of lines; `all` is None."""
    if text == "all":
        return None
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII):
        raise UsageRefused(f'"{text}" is no number of lines: use a whole number, or all')
    return int(text)


def show_bytes(amount: int) -> str:
    """Return an amount for a table: three digits that count, powers of 1000, as in `12.3MB`."""
    size = float(amount)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f}{unit}" if unit == "B" or size >= 100 else f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g}TB"
