"""What the zygote of the front's tests runs instead of the command line; see `main`."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from types import FrameType


def main() -> int:
    """Do what the first argument says."""
    verb, *rest = sys.argv[1:]
    match verb:
        case "facts":
            print(json.dumps(facts()))
        case "exit":
            return int(rest[0])
        case "raise":
            raise RuntimeError("a bug")
        case "die":
            os.kill(os.getpid(), int(rest[0]))
        case "cat":
            shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)
        case "big":
            for _ in range(int(rest[0])):
                sys.stdout.write("x" * 1023 + "\n")
        case "signals":
            listen()
        case "wait":
            print(os.getpid(), flush=True)
            time.sleep(60)
        case "hangup":
            signal.signal(signal.SIGHUP, lambda *_: finish(rest[0]))
            print(os.getpid(), flush=True)
            while True:
                time.sleep(60)
        case _:
            return 99
    return 0


def finish(path: str) -> None:
    """Leave a word and end."""
    with open(path, "w") as file:
        file.write("hangup")
    sys.exit(0)


def listen() -> None:
    """Print each signal's name; end after SIGTERM."""

    def seen(number: int, _: FrameType | None) -> None:
        # Not print: a handler may interrupt another print, which may not be entered twice.
        os.write(1, signal.Signals(number).name.encode() + b"\n")
        if number == signal.SIGTERM:
            sys.exit(0)

    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH"):
        signal.signal(getattr(signal, name), seen)
    os.write(1, b"ready\n")
    while True:
        time.sleep(60)


def facts() -> dict[str, object]:
    """Return what this process took over."""
    umask = os.umask(0)
    os.umask(umask)
    descriptors: list[int] = []
    for number in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(number))
            descriptors.append(int(number))
        except OSError:
            continue  # the listing's own
    return {
        "pid": os.getpid(),
        "argv": sys.argv[1:],
        "directory": os.getcwd(),
        "mark": os.environ.get("MARK"),
        "zygote": os.environ.get("ZYGOTE"),
        "umask": umask,
        "ignored": signal.getsignal(signal.SIGHUP) == signal.SIG_IGN,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "descriptors": sorted(descriptors),
        "terminals": [stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "columns": shutil.get_terminal_size().columns,
        "group": os.getpgid(0),
    }
