"""The process itself, on a socket that it was handed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import trio

from container.contracts.images import Images
from container.ipc import Fd
from tests.images.conftest import small_layout


async def test_the_process_serves_the_images_of_its_root_and_ends_on_a_signal(
    tmp_path: Path,
) -> None:
    layout = small_layout(tmp_path / "layout")
    path = tmp_path / "images.sock"
    environment = {
        **os.environ,
        "CONTAINER_ROOT": str(tmp_path / "root"),
        "CONTAINER_RUN": str(tmp_path / "run"),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    # The socket is handed over as systemd does it: number 3, and the process's own pid.
    script = (
        "import os, sys; os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
        "os.dup2(int(sys.argv[1]), 3); sys.argv[1:] = ['--log', '-'];"
        "from container.images.process import main; sys.exit(main())"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", script, str(number)], env=environment, pass_fds=[number]
        )
    try:
        with trio.fail_after(30):
            async with Images.connect(path) as images:
                with Fd(os.open(layout, os.O_RDONLY)) as fd:
                    (row,) = await images.load(fd, None, "layout")
                snapshot = await images.prepare(row.reference, "c1")
                assert snapshot.layers[0].startswith(str(tmp_path / "root/images/snapshots"))
    finally:
        process.send_signal(signal.SIGTERM)
        status = await trio.to_thread.run_sync(process.wait, 10)
    assert status == 0
