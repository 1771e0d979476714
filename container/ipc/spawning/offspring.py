"""What a child of the zygote does first: become a process of its own.

A fork without exec keeps everything: descriptors (close-on-exec does nothing), random states,
signal handlers, environment, log handlers, context variables. A child that keeps another's
descriptor keeps its peer from ever seeing the end of file; two that keep a random state make the
same choices. So all of it is set anew here, before the first line of the child's own work.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import importlib
import io
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import NoReturn


def keep_only(descriptors: Collection[int]) -> None:
    """Close all descriptors but 0, 1, 2 and these."""
    kept = {0, 1, 2, *descriptors}
    # Not closerange(): without close_range(2) it is one call for each number up to the limit.
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


def place(descriptors: Mapping[int, int]) -> None:
    """Move descriptors to the given numbers (`{from: to}`), whatever was there before.

    The results are inheritable; the originals stay open.
    """
    top = max((*descriptors.keys(), *descriptors.values(), 2)) + 1
    import fcntl

    away = {
        fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, top): to for source, to in descriptors.items()
    }
    for source, to in away.items():
        os.dup2(source, to, inheritable=True)
        os.close(source)


def reset_signals(ignored: Collection[int] = ()) -> None:
    """Give every signal its default action, as Python starts with, but for those to be ignored."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    if signal.SIGINT not in ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def reset_environment(environment: Mapping[bytes, bytes]) -> None:
    """Replace the environment, and what was read from it already."""
    for name in [name for name in os.environb if name not in environment]:
        del os.environb[name]
    # Nearly all of it is as it was: what is not written stays in pages that are shared.
    for name, value in environment.items():
        if os.environb.get(name) != value:
            os.environb[name] = value
    time.tzset()


def reset_random_states() -> None:
    """Seed all generators that a fork copied. (`random` itself does so at every fork.)"""
    random.seed()
    runner = sys.modules.get("trio._core._run")
    generator = getattr(runner, "_r", None)  # decides the order of Trio's tasks
    if isinstance(generator, random.Random):
        generator.seed()


def reset_streams() -> None:
    """Open sys.stdin, stdout and stderr anew on 0, 1 and 2, buffered as Python starts with.

    The old ones are kept, detached from their descriptors, so that collecting them closes nothing.
    """
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        old = getattr(sys, name)
        if old is not None:
            with contextlib.suppress(ValueError, OSError):
                _leaked.append(old.detach())
        errors = "backslashreplace" if fd == 2 else "surrogateescape" if _c_locale() else "strict"
        raw = io.FileIO(fd, mode, closefd=False)
        terminal = raw.isatty()
        buffer = io.BufferedReader(raw) if fd == 0 else io.BufferedWriter(raw)
        stream = io.TextIOWrapper(
            buffer, encoding="utf-8", errors=errors, line_buffering=terminal or fd == 2
        )
        stream.mode = mode  # pyright: ignore[reportAttributeAccessIssue]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


_leaked: list[object] = []


def _c_locale() -> bool:
    value = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or "C"
    return value in ("C", "POSIX")


def reset_logging() -> None:
    """Drop the handlers of the zygote's log."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)


def name_process(name: str) -> None:
    """Set the name that ps(1) and top(1) show; the kernel keeps 15 bytes."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as file:
        file.write(name.encode()[:15])


def run_entry(entry: str, arguments: list[str]) -> int:
    """Run `package.module:function` with `sys.argv` set, and return its exit status.

    What the function raises is what an interpreter would make of it: `SystemExit` is its code,
    anything else a traceback on stderr and 1.
    """
    sys.argv = arguments
    gc.enable()

    def call() -> object:
        module, _, name = entry.partition(":")
        function: Callable[[], object] = getattr(importlib.import_module(module), name)
        return function()

    try:
        result = contextvars.Context().run(call)
    except SystemExit as error:
        result = error.code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
        return 1
    if result is None:
        return 0
    if isinstance(result, int):
        return result & 0xFF
    print(result, file=sys.stderr)
    return 1


def leave(status: int, before: Callable[[int], None] | None = None) -> NoReturn:
    """End this process: flush, tell, `os._exit`. Never returns to the zygote's own code.

    Args:
        status: The exit status; 120 instead if output could not be flushed and it was 0.
        before: Called with the final status when 0, 1 and 2 are closed.
    """
    try:
        import atexit

        atexit._run_exitfuncs()  # pyright: ignore
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                status = status or 120  # as Python itself ends then
        if before is not None:
            for fd in (0, 1, 2):
                with contextlib.suppress(OSError):
                    os.close(fd)
            before(status)
    finally:
        os._exit(status)
