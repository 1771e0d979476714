"""An OCI runtime that does not answer is ended at its deadline, with all that it has started."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from container.ipc import Unavailable
from container.runtime import command_line
from container.runtime.command_line import CommandLineRuntime
from container.runtime.oci import ProcessStdio
from container.runtime.unfinished import end_calls

from .surviving import alive, until

HANGING = """#!/bin/sh
sleep 100 &
echo $! > {child}
wait
"""


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLineRuntime:
    monkeypatch.setattr(command_line, "CALL_SECONDS", 0.2)
    program = tmp_path / "other-runtime"
    program.write_text(HANGING.format(child=tmp_path / "child"))
    program.chmod(0o755)
    (tmp_path / "config.json").write_text(json.dumps({"process": {"args": ["true"]}}))
    return CommandLineRuntime(program, tmp_path / "state")


CALLS: dict[str, Callable[[CommandLineRuntime, Path, ProcessStdio], Awaitable[object]]] = {
    "create": lambda runtime, folder, stdio: runtime.create("a", folder, stdio, None),
    "start": lambda runtime, folder, stdio: runtime.start("a"),
    "exec": lambda runtime, folder, stdio: runtime.execute(
        "a", folder, {"args": ["true"]}, stdio, None
    ),
    "pause": lambda runtime, folder, stdio: runtime.pause("a"),
    "resume": lambda runtime, folder, stdio: runtime.resume("a"),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_that_hangs_is_ended_with_its_group(
    hanging: CommandLineRuntime, tmp_path: Path, call: str
) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        with trio.fail_after(10), pytest.raises(Unavailable, match="did not answer"):
            await CALLS[call](hanging, tmp_path, ProcessStdio(null, null, null))
        child = int((tmp_path / "child").read_text())
        await hanging.delete("a")  # reaps what was left
        await until(lambda: not alive(child))
    finally:
        os.close(null)


async def test_a_cancelled_call_is_ended_too(hanging: CommandLineRuntime, tmp_path: Path) -> None:
    with trio.move_on_after(0.1):
        await hanging.start("a")
    await hanging.delete("a")
    assert end_calls(tmp_path / "state") == 0
