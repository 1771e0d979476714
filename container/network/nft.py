"""The program nft: run one transaction, or list what there is.

A transaction is in force whole or not at all, so it is never cut off by a cancellation: it takes
some 5 ms, and has a deadline. Source: nft(8), libnftables-json(5).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from container.ipc import Unavailable, Unsupported

DEADLINE = 20
"""Seconds of one run; a machine with very many rules of others needs a few."""
_PLACES = "/usr/sbin:/sbin:/usr/local/sbin"
"""Not in everybody's PATH."""


async def apply(commands: Sequence[object]) -> None:
    """Put commands in force, all or none of them.

    Raises:
        Unsupported: there is no program nft; the hint says what to install.
        Unavailable: nft refused, and nothing was changed; or it did not answer in time, and it is
            not known whether anything was (`details["unknown"]`).
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    await _run("-f", "-", given=json.dumps({"nftables": commands}).encode())


async def ruleset() -> list[dict[str, Any]]:
    """Return all tables, chains and rules of this network namespace, without elements of sets.

    Raises:
        Unsupported, Unavailable: as `apply`.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    return json.loads(await _run("-t", "list", "ruleset"))["nftables"]


async def legacy_listing(program: str, chain: str) -> str:
    """Return a chain of the old iptables, which nft does not list; empty if it is not in use.

    Args:
        program: `iptables-legacy` or `ip6tables-legacy`.
        chain: `FORWARD` or `INPUT`.
    """
    await trio.lowlevel.checkpoint()
    path = _where(program)
    names = Path("/proc/net/ip6_tables_names" if "6" in program else "/proc/net/ip_tables_names")
    # Asking the program would load its modules where they are not.
    if path is None or not _says(names, "filter"):
        return ""
    with trio.move_on_after(DEADLINE):
        done = await trio.run_process(
            [path, "-S", chain], capture_stdout=True, capture_stderr=True, check=False
        )
        return done.stdout.decode(errors="replace")
    return ""


async def _run(*arguments: str, given: bytes = b"") -> bytes:
    done: subprocess.CompletedProcess[bytes] | None = None
    try:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + DEADLINE):
            done = await trio.run_process(
                [_program(), "-j", *arguments],
                stdin=given,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    except OSError as error:
        raise Unavailable(f"nft can't be started: {error.strerror or error}") from error
    if done is None:
        raise Unavailable(f"nft did not end in {DEADLINE} s", details={"unknown": True})
    if done.returncode != 0:
        raise Unavailable(f"nft refused the network's rules: {_sentence(done)}")
    return done.stdout


def _says(file: Path, word: str) -> bool:
    try:
        return word in file.read_text().split()
    except OSError:
        return False


def _where(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_PLACES}")


def _program() -> str:
    program = _where("nft")
    if program is None:
        raise Unsupported(
            "the program nft is missing, which a network's rules need",
            hint="install the package nftables",
        )
    return program


def _sentence(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"it was killed by signal {-done.returncode}"
    for line in done.stderr.decode(errors="replace").splitlines():
        if line.strip():
            # `internal:0:0-0: Error: No such file or directory`
            return line.partition("Error: ")[2] or line.strip()
    return f"it ended with status {done.returncode}"
