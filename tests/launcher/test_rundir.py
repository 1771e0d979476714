"""The run directory: sockets of the dead go, those of the living stay."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from container.launcher.rundir import sweep_sockets


def test_sockets_behind_which_nobody_listens_are_swept() -> None:
    with tempfile.TemporaryDirectory(prefix="cr-") as name:
        folder = Path(name)
        sweep_sockets(folder / "missing")
        (folder / "plain.sock").touch()
        with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as dead:
            alive.bind(str(folder / "alive.sock"))
            alive.listen()
            dead.bind(str(folder / "dead.sock"))
            sweep_sockets(folder)
            assert sorted(os.listdir(folder)) == ["alive.sock", "plain.sock"]
