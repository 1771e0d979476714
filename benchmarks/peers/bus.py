"""A private D-Bus daemon for the peers that need one between their two ends."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

CONFIGURATION = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
NAME = "org.example.Bench"
PATH = "/bench"


def address(folder: Path) -> str:
    """Return the address of the bus in `folder`."""
    return f"unix:path={folder}/bus"


@contextmanager
def open_bus(folder: Path) -> Generator[str]:
    """Hold a bus that lives in `folder`, and return its address once it listens.

    It ends with its standard input's other end too, since a killed server can't end it.
    """
    program = shutil.which("dbus-daemon")
    if program is None:
        print("dbus-daemon is not installed", flush=True)
        raise SystemExit(1)
    configuration = folder / "bus.conf"
    configuration.write_text(CONFIGURATION.format(socket=folder / "bus"))
    # A pipe that only this process writes to, and a shell that ends the bus at its end of file: the
    # bus can't outlive this process, however it ends.
    line = '"$0" --config-file="$1" --nofork --nopidfile --print-address=1 & read _; kill $!; wait'
    shell = subprocess.Popen(
        ["sh", "-c", line, program, str(configuration)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert shell.stdout is not None
        shell.stdout.readline()
        yield address(folder)
    finally:
        shell.communicate(timeout=10)
